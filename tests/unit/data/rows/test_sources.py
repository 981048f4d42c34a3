"""Every kind of source gives the same pictures, captions and fields; what is wrong with one is a line."""

import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import png, write_shards, write_tar

from clipx.data.index.shard_index import build_index
from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import LeftOutError, Row, Rows, StoredSample, TableColumns
from clipx.data.rows.source_files import image_of
from clipx.errors import InputError

CAPTIONS = ["a cat", 'two "dogs",\nin two lines', "a bird; not a plane", "ein Vögelchen"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures 0.png to 3.png."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(len(CAPTIONS)):
        (pictures / f"{number}.png").write_bytes(png(number))
    return pictures


def opened(source: Path | str, **options) -> Rows:
    """The rows as another process has them."""
    columns = TableColumns(image=options.pop("image", None), captions=options.pop("captions", ()))
    return pickle.loads(pickle.dumps(open_rows([str(source)], SourceOptions(columns=columns, **options))))


def all_of(rows: Rows) -> list[Row]:
    found = [rows.read(number) for number in range(len(rows))]
    assert all(isinstance(row, Row) for row in found)
    return found


def check(rows: list[Row], records: list[dict[str, object]] | None = None) -> None:
    assert [image_of(row) for row in rows] == [png(number) for number in range(len(CAPTIONS))]
    assert [row.captions for row in rows] == [[caption] for caption in CAPTIONS]
    if records is not None:
        assert [dict(row.record) for row in rows] == records


def left_out(rows: Rows) -> list[tuple[int, str]]:
    """(row, reason) of those that make no sample."""
    found = []
    for number in range(len(rows)):
        try:
            row = rows.read(number)
            if isinstance(row, Row):
                image_of(row)
        except LeftOutError as error:
            found.append((number, error.reason))
    return found


class TestFolder:
    def test_text_beside_pictures(self, folder: Path) -> None:
        for number, caption in enumerate(CAPTIONS):
            (folder / f"{number}.txt").write_text(f"  {caption}\n", encoding="utf-8")
        check(all_of(opened(folder)), [{"file_name": f"{number}.png"} for number in range(4)])

    def test_json_beside_pictures_below_it(self, folder: Path) -> None:
        deeper = folder / "b" / "c"
        deeper.mkdir(parents=True)
        (folder / "0.png").rename(deeper / "x.PNG")
        content = {"captions": ["one", " ", "two"], "score": 0.5, "file_name": "as it says"}
        (deeper / "x.json").write_text(json.dumps(content))
        (folder / "1.json").write_text('{"text": "not this", "prompt": "this"}')
        rows = opened(folder, captions=["prompt"])
        assert rows.read(0).captions == ["this"]
        row = opened(folder).read(3)
        assert (row.name, row.captions) == ("b/c/x.PNG", ["one", "two"])
        assert row.record == {"file_name": "as it says", "score": 0.5}

    def test_order_is_that_of_the_names(self, folder: Path) -> None:
        for name in ("b/1.png", "b/0.png", "a/2.png", "a/b/3.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(png(1))
            (folder / name).with_suffix(".txt").write_text("a")
        rows = opened(folder)
        assert [rows.read(n).name for n in range(4, 8)] == ["a/2.png", "a/b/3.png", "b/0.png", "b/1.png"]

    def test_text_wins_and_json_stays(self, folder: Path) -> None:
        (folder / "0.txt").write_text("from the text")
        (folder / "0.json").write_text('{"caption": "from json"}')
        row = opened(folder).read(0)
        assert row.captions == ["from the text"]
        assert row.record["caption"] == "from json"
        row = opened(folder, captions=["caption"]).read(0)
        assert (row.captions, row.record) == (["from json"], {"file_name": "0.png"})
        (folder / "0.json").unlink()
        with pytest.raises(LeftOutError, match=r"no NAME\.json beside it"):
            opened(folder, captions=["caption"]).read(0)

    def test_what_is_left_out(self, folder: Path) -> None:
        (folder / "0.txt").write_text(" \n")
        (folder / "1.txt").write_bytes(b"\xff\xfe")
        (folder / "2.json").write_text("{")
        rows = opened(folder)
        assert left_out(rows) == [(number, "no caption") for number in range(4)]

    def test_metadata_of_an_imagefolder(self, folder: Path) -> None:
        lines = [json.dumps({"file_name": f"{n}.png", "text": caption}) for n, caption in enumerate(CAPTIONS)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        check(all_of(opened(folder)))


class TestText:
    def test_csv(self, folder: Path) -> None:
        rows = ["filename,caption,score,id,empty"]
        rows += [
            f'{n}.png,"{caption.replace(chr(34), chr(34) * 2)}",0.{n}5,00{n},' for n, caption in enumerate(CAPTIONS)
        ]
        table = folder / "table.csv"
        table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([rows[0], "", *rows[1:], ""]).encode())
        records = [{"filename": f"{n}.png", "score": float(f"0.{n}5"), "id": f"00{n}"} for n in range(4)]
        check(all_of(opened(table)), records)

    @pytest.mark.parametrize(("name", "delimiter"), [("t.tsv", "\t"), ("t.csv", "\t"), ("t.csv", ";")])
    def test_other_delimiters(self, folder: Path, tmp_path: Path, name: str, delimiter: str) -> None:
        table = tmp_path / name
        table.write_text(delimiter.join(["path", "text"]) + "\n" + delimiter.join(["1.png", '"a; b\u2028c"']))
        row = opened(table, image_folder=folder).read(0)
        assert (image_of(row), row.captions) == (png(1), ["a; b\u2028c"])

    def test_jsonl(self, folder: Path) -> None:
        table = folder / "t.jsonl"
        lines = [
            {"image": "0.png", "caption": ["one", None, "", 3, "two"], "nan": float("nan"), "id": None},
            {"image": str(folder / "1.png"), "caption": "half \ud800 a pair", "more": {"a": [1]}},
        ]
        table.write_text("\n" + "\n\n".join(map(json.dumps, lines)))
        first, second = all_of(opened(table))
        assert (first.captions, first.record) == (["one", "two"], {"image": "0.png"})
        assert (image_of(second), second.captions) == (png(1), ["half  a pair"])
        assert second.record["more"] == {"a": [1]}

    def test_several_columns_of_captions(self, folder: Path) -> None:
        table = folder / "t.jsonl"
        table.write_text(json.dumps({"img": "0.png", "a": ["1", "2"], "b": "3", "caption": "not this"}))
        row = opened(table, captions=["b", "a"]).read(0)
        assert (row.captions, row.record) == (["3", "1", "2"], {"img": "0.png", "caption": "not this"})

    def test_what_is_left_out(self, folder: Path) -> None:
        rows = ["0.png,a", "nope.png,a", "0.png/x,a", "0.png,", " ,a", "https://x.org/0.png,a", "1.png", ".,a"]
        (folder / "t.csv").write_text("image,caption\n" + "\n".join(rows))
        assert left_out(opened(folder / "t.csv")) == [
            (1, "missing file"),
            (2, "missing file"),
            (3, "no caption"),
            (4, "no picture"),
            (5, "a URL"),
            (6, "no caption"),
            (7, "unreadable picture"),
        ]

    def test_numbers_are_what_json_writes_back(self, folder: Path) -> None:
        numbers = ["0", "-7", "0.25", "1.0", "12345678901234567890123", "1e+16", "1e-07"]
        texts = ["123e45", "1e999", "007", "0.50", "1e5", "-0.00", "+1", "1_000", "NaN", "Infinity", "true", "٣", " 1"]
        texts += ["9" * 5000, "0.1000000000000000055511151231257827"]
        rows = "".join(f'0.png,a,"{value}"\n' for value in numbers + texts)
        (folder / "t.csv").write_text("image,caption,n\n" + rows, encoding="utf-8")
        found = [row.record["n"] for row in all_of(opened(folder / "t.csv"))]
        assert found[: len(numbers)] == [json.loads(number) for number in numbers]
        assert json.dumps(found[: len(numbers)]) == f"[{', '.join(numbers)}]"
        assert found[len(numbers) :] == texts

    def test_a_broken_line_is_left_out(self, folder: Path) -> None:
        (folder / "t.jsonl").write_text('{"image": \n[1]\n{"image": "0.png", "caption": "a"}')
        assert left_out(opened(folder / "t.jsonl")) == [(0, "unreadable row"), (1, "unreadable row")]


class TestBinary:
    def test_parquet_of_paths(self, folder: Path, tmp_path: Path) -> None:
        table = pa.table({"path": [f"{n}.png" for n in range(4)], "caption": CAPTIONS, "similarity": [0.25] * 4})
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
        rows = opened(tmp_path / "t.parquet", image_folder=folder)
        check(all_of(rows), [{"path": f"{n}.png", "similarity": 0.25} for n in range(4)])
        assert rows.block_rows == 3
        assert image_of(rows.read(0)) == png(0)  # back into an earlier group

    @pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow file"])
    def test_pictures_within(self, folder: Path, tmp_path: Path, kind: str) -> None:
        images = [{"bytes": png(n), "path": f"{n}.png"} for n in range(3)]
        images.append({"bytes": None, "path": str(folder / "3.png")})
        table = pa.table({"image": images, "caption": [[caption] for caption in CAPTIONS], "n": range(4)})
        saved = tmp_path / "saved"
        saved.mkdir()
        parts = [table.slice(0, 3), table.slice(3)]
        names = [f"data-{n}-of-2.{kind.split(maxsplit=1)[0]}" for n in range(2)]
        for name, part in zip(names, parts, strict=True):
            if kind == "parquet":
                pq.write_table(part, saved / name)
                continue
            new = pa.ipc.new_stream if kind == "arrow" else pa.ipc.new_file
            with new(str(saved / name), table.schema) as writer:
                writer.write_table(part)
        if kind != "parquet":
            (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
        source = opened(saved)
        rows = all_of(source)
        check(rows)
        if kind != "parquet":
            assert png(0) not in pickle.dumps(source)
        assert [row.record["n"] for row in rows] == [0, 1, 2, 3]
        assert rows[0].record["image"] == "0.png"
        assert rows[3].name == str(folder / "3.png")

    def test_fields_are_what_json_can_hold(self, folder: Path, tmp_path: Path) -> None:
        fields = {
            "f": [1.0, float("nan")],
            "b": [b"x"],
            "s": {"b": b"\xff", "f": float("inf"), "i": 1},
            "e": ["", None],
        }
        columns = {"image": ["0.png"], "caption": ["a"], **{name: [value] for name, value in fields.items()}}
        pq.write_table(pa.table(columns), folder / "t.parquet")
        record = all_of(opened(folder / "t.parquet"))[0].record
        assert record == {"image": "0.png", "f": [1.0, None], "b": [None], "s": {"i": 1}, "e": ["", None]}

    def test_bytes_alone(self, tmp_path: Path) -> None:
        table = pa.table({"jpg": [png(0), b""], "txt": ["a", "b"]})
        pq.write_table(table, tmp_path / "t.parquet")
        rows = opened(tmp_path / "t.parquet")
        assert (rows.read(0).image, rows.read(0).record) == (png(0), {})
        assert left_out(rows) == [(1, "no picture")]


class TestCoco:
    def test_all_captions_of_an_image(self, folder: Path, tmp_path: Path) -> None:
        content = {
            "images": [{"id": 7, "file_name": "1.png", "width": 6}, {"id": 5, "file_name": "0.png"}],
            "annotations": [
                {"image_id": 7, "caption": "one "},
                {"image_id": 5, "caption": " "},
                {"image_id": 7, "caption": "two"},
            ],
        }
        path = tmp_path / "captions_train2017.json"
        path.write_text(json.dumps(content))
        rows = opened(path, image_folder=folder)
        assert rows.read(0) == Row(
            "1.png", folder / "1.png", ["one", "two"], {"image_id": 7, "file_name": "1.png", "width": 6}
        )
        assert left_out(rows) == [(1, "no caption")]

    def test_a_list_of_objects(self, folder: Path) -> None:
        (folder / "t.json").write_text(json.dumps([{"image": "0.png", "text": "a"}]))
        assert opened(folder / "t.json").read(0).captions == ["a"]


class TestShards:
    def test_samples_as_they_are(self, tmp_path: Path) -> None:
        write_shards(tmp_path / "shards", [2, 3])
        for rows in (opened(tmp_path / "shards"), opened(tmp_path / "shards" / "*.tar")):
            assert len(rows) == 5
            found = rows.read(3)
            assert isinstance(found, StoredSample)
            assert (found.key, found.fields) == ("000003", {"png": png(3), "txt": b"picture 3"})

    def test_only_what_an_index_holds(self, tmp_path: Path) -> None:
        from clipx.data.filters.filters import SampleFilter

        write_shards(tmp_path / "shards", [2, 3])
        (tmp_path / "keys").write_text("000001\n000004\n")
        filters = SampleFilter.parse([], keys=tmp_path / "keys")
        build_index([str(tmp_path / "shards")], index_dir=str(tmp_path / "index"), filters=filters)
        rows = opened(tmp_path / "shards", index=str(tmp_path / "index"))
        assert [rows.read(number).key for number in range(len(rows))] == ["000001", "000004"]

    def test_a_cut_sample_is_left_out(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", [("0.txt", b"a"), ("1.txt", b"b" * 2000)])
        path.write_bytes(path.read_bytes()[:2000])
        assert left_out(opened(path)) == [(1, "truncated shard")]


def test_sources_follow_each_other(folder: Path, tmp_path: Path) -> None:
    (folder / "a.csv").write_text("image,caption\n0.png,a\n1.png,b")
    (folder / "b.csv").write_text("image,caption\n2.png,c")
    rows = open_rows([str(folder / "b.csv"), str(folder / "a.csv")], SourceOptions())
    assert [row.captions for row in all_of(rows)] == [["c"], ["a"], ["b"]]
    by_pattern = all_of(open_rows([str(folder / "*.csv")], SourceOptions()))
    assert [row.captions for row in by_pattern] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nope.csv", None, "no such file or folder"),
        ("t.xlsx", "a", r"\.xlsx is none of \.csv"),
        ("t.csv", "image,caption\n", "no row in it"),
        (
            "t.csv",
            "image,words\n0.png,a",
            "no caption column of a usual name; name one of image, words with --caption-",
        ),
        ("t.csv", "bild,caption\n0.png,a", "name one of bild, caption with --image-column"),
        ("t.csv", "image,caption\r0.png,a\r", "line 1: new-line character seen in unquoted field.*; mend it"),
        ("t.csv", b"image,caption\n0.png,\xff", "line 2: .*save the file as CSV in UTF-8"),
        ("t.csv", b'image,caption\n0.png,"two\nlines"\n1.png,"a\n2.png,b', "line 4: unexpected end of data; mend it"),
        ("t.csv", b'image,caption\n0.png,"a" b', "line 2: ',' expected after"),
        ("t.csv", "", "has no columns; it must have those of pictures and captions"),
        ("t.csv", "image,caption,caption\n0.png,a,b", "has 2 columns 'caption'; give each a name of its own"),
        ("t.tsv", "a dog\thttps://x.org/0.jpg", r"no columns but holds values \(a dog, https.*--header image,caption"),
        ("t.txt", "0.JPG a dog.png", "no columns but holds values"),
        ("t.csv", "image,caption\n".encode("utf-16"), "is UTF-16 or UTF-32; save it as UTF-8"),
        ("t.jsonl", '{"image": "a"}'.encode("utf-16"), "is UTF-16 or UTF-32; save it as UTF-8"),
        (
            "t.tsv",
            'image\tcaption\n0.png\t"a" b',
            "line 2: .* or give --quoting none if quotes are a part of the texts",
        ),
        ("t.csv", ",".join(f"column_{n}" for n in range(99)), r"name one of column_0, .*, column_9 and 89 more with"),
        ("t.csv", "x" * 999 + ",y", r"name one of x{80}\.\.\., y with"),
        ("t.json", "{", "is not JSON"),
        ("t.json", '{"images": [], "categories": []}', "is not COCO's captions file: no 'annotations' in it"),
        ("t.json", '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}]}', "no 'caption' in it"),
        ("t.json", "[1]", "is not COCO's captions file: it is of another form"),
        ("t.json", "[" * 100_000, "is not JSON"),
        ("t.parquet", "no", "is no parquet file"),
        ("t.arrow", "no", "is no arrow file"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_one_source(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither pictures nor a table"):
        opened(tmp_path)
    (tmp_path / "dataset_dict.json").write_text("{}")
    for split in ("test", "train"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"several splits \(test, train\); name those to take with --split"):
        opened(tmp_path)
    with pytest.raises(InputError, match=r"train/state\.json is not as HF datasets"):
        opened(tmp_path, splits=["train"])
    with pytest.raises(InputError, match="has no split 'dev'; it has test, train"):
        opened(tmp_path, splits=["dev"])


def test_a_named_column_must_be_there(folder: Path) -> None:
    (folder / "t.csv").write_text("image,caption\n0.png,a")
    with pytest.raises(InputError, match="has no column 'title'; name one of image, caption with --caption-column"):
        opened(folder / "t.csv", captions=["title"])


def test_without_pyarrow_it_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (folder / "t.parquet").touch()
    with pytest.raises(InputError, match=r"needs pyarrow: pip install pyarrow"):
        opened(folder / "t.parquet")
