"""Options of `clipx data make` that say how a source is read are used, or refused."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import png, write_tar

from clipx.data.index.shard_index import build_index
from clipx.data.rows.dialects import TextFormat
from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import Rows, TableColumns
from clipx.errors import InputError


def opened(source: Path, *, image: str | None = None, captions: tuple[str, ...] = (), **options) -> Rows:
    return open_rows([str(source)], SourceOptions(columns=TableColumns(image=image, captions=captions), **options))


@pytest.mark.parametrize(
    ("options", "name", "used_by"),
    [
        ({"captions": ["blip"]}, "--caption-column", ["t.csv", "t.jsonl", "t.json", "t.parquet", "folder"]),
        ({"image": "path"}, "--image-column", ["t.csv", "t.jsonl", "t.json", "t.parquet"]),
        ({"text_format": TextFormat(header=["image", "path", "caption", "blip"])}, "--header", ["t.csv"]),
        ({"text_format": TextFormat(quoting=False)}, "--quoting none", ["t.csv"]),
        ({"image_folder": Path("x")}, "--image-folder", ["t.csv", "t.jsonl", "t.json", "t.parquet", "coco.json"]),
        ({"index": "index"}, "--index", ["0.tar"]),
    ],
)
def test_an_option_that_a_source_has_no_use_for_is_refused(
    tmp_path: Path, options: dict[str, object], name: str, used_by: list[str]
) -> None:
    """Other captions than those that a person named would be trained on."""
    record = {"image": "0.png", "path": "0.png", "caption": "a", "blip": "b"}
    (tmp_path / "t.csv").write_text("image,path,caption,blip\n0.png,0.png,a,b\n")
    for list_name, content in (("t.jsonl", record), ("t.json", [record])):
        (tmp_path / list_name).write_text(json.dumps(content))
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "t.parquet")
    images, annotations = [{"id": 1, "file_name": "0.png"}], [{"image_id": 1, "caption": "a"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0.png").write_bytes(png(0))
    write_tar(tmp_path / "0.tar", [("0.png", png(0)), ("0.txt", b"a")])
    build_index([str(tmp_path / "0.tar")], index_dir=str(tmp_path / "index"))
    if "index" in options:
        options = {"index": str(tmp_path / "index")}
    for source in ("t.csv", "t.jsonl", "t.json", "t.parquet", "coco.json", "folder", "0.tar"):
        if source in used_by:
            assert len(opened(tmp_path / source, **options)) >= 1
        else:
            with pytest.raises(InputError, match=f"{source}: {name} has no meaning for such a source; leave it out"):
                opened(tmp_path / source, **options)


def test_an_option_that_one_of_several_sources_uses_is_fine(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("0.png,a")
    (tmp_path / "0.png").write_bytes(png(0))
    options = SourceOptions(text_format=TextFormat(header=["image", "caption"]))
    assert len(open_rows([str(tmp_path / "t.csv"), str(tmp_path)], options)) == 2


def test_of_many_sources_without_a_row_ten_are_named(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.csv").write_text("image,caption\n")
    with pytest.raises(InputError, match=r"and 20 more: no row in it; give a source"):
        open_rows([str(path) for path in tmp_path.iterdir()], SourceOptions())
