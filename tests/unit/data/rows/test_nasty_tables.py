"""Whatever a table looks like, each of its rows is a sample, a further caption of one, or a line in left_out.jsonl.

The right captions of each picture stand beside each input.
"""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import png

from clipx.data.captions import MAX_TEXT
from clipx.data.rows.dialects import TextFormat
from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import TableColumns
from clipx.making.make import Made, make_shards
from clipx.making.make_shard import MakeOptions

Samples = list[tuple[int, list[str]]]


@dataclass(frozen=True, kw_only=True)
class Nasty:
    """A table, and what is right."""

    name: str
    content: str | bytes | Callable[[Path], None]
    """Of the file, or what writes it; pictures 0.png to 3.png are beside it."""
    samples: Samples
    """Pictures and their captions, in order."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    rows: int
    format: TextFormat = field(default_factory=TextFormat)
    columns: TableColumns = field(default_factory=TableColumns)
    splits: Sequence[str] = ()


def lines(*objects: object) -> str:
    return "\n".join(map(json.dumps, objects))


def parquet(**columns: list[Any]) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path, row_group_size=2)


def arrow(**columns: list[Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        table = pa.table(columns)
        with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
            writer.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))

    return write


def image(number: int, path: str | None = None) -> dict[str, object]:
    return {"bytes": png(number), "path": path}


COCO = {
    "images": [
        {"id": 7, "file_name": "1.png"},
        {"id": 5, "file_name": "0.png"},
        {"id": 9, "file_name": "2.png"},
        {"id": 3},
    ],
    "annotations": [
        {"image_id": 7, "caption": "one"},
        {"image_id": 7, "caption": "two"},
        {"image_id": 5, "caption": "three"},
        {"image_id": 404, "caption": "of no image"},
        {"image_id": 3, "caption": "of no file"},
    ],
}
KARPATHY = {
    "images": [
        {"filename": "0.png", "filepath": ".", "split": "train", "sentences": [{"raw": "a"}, {"raw": " b "}]},
        {"filename": "1.png", "split": "test", "sentences": [{"raw": "c", "tokens": ["c"]}]},
        {"filename": "2.png", "split": "train", "sentences": [{"raw": "&nbsp;"}]},
        {"split": "train", "sentences": [{"raw": "d"}]},
    ],
    "dataset": "flickr",
}

NASTY = {
    "commas without quotes": Nasty(
        name="t.csv",
        content="image,caption\n0.png,a dog, running, fast\n1.png,a cat\n",
        samples=[(1, ["a cat"])],
        left_out={"unreadable row": 1},
        rows=2,
    ),
    "a caption cut by a line break": Nasty(
        name="t.csv",
        content="image,caption,score\n0.png,a dog\nrunning,0.5\n1.png,a cat,1\n",
        samples=[(1, ["a cat"])],
        left_out={"unreadable row": 2},
        rows=3,
    ),
    "values that are absent behind the caption, or empty and too many": Nasty(
        name="t.csv",
        content="image,caption,a,b\n0.png,a dog,1\n1.png,a cat,1,2,,\n",
        samples=[(0, ["a dog"]), (1, ["a cat"])],
        rows=2,
    ),
    "a row per caption": Nasty(
        name="t.csv",
        content="image,caption\n0.png,a\n1.png,b\n0.png,c\n0.png,a\n1.png,\n2.png,d\n",
        samples=[(0, ["a", "c"]), (1, ["b"]), (2, ["d"])],
        left_out={"no caption": 1},
        rows=6,
    ),
    "one file by several names": Nasty(
        name="t.csv",
        content=lambda path: path.write_text(
            f"image,caption\n0.png,a\n./0.png,b\n{path.parent}/0.png,c\nfile://{path.parent}/0.png,d\n1.png,e"
        ),
        samples=[(0, ["a", "b", "c", "d"]), (1, ["e"])],
        rows=5,
    ),
    "one file by way of the folder above, which is another behind a link": Nasty(
        name="t.csv",
        content=lambda path: (
            (path.parent / "sub" / "deep").mkdir(parents=True),
            (path.parent / "link").symlink_to("sub/deep"),
            (path.parent / "sub" / "0.png").write_bytes(png(1)),
            path.write_text("image,caption\nsub/../0.png,a\n0.png,b\nlink/../0.png,c\nsub/0.png,d\n../\0,e\n"),
        ),
        samples=[(0, ["a", "b"]), (1, ["c", "d"])],
        left_out={"unreadable picture": 1},
        rows=5,
    ),
    "a column that is called as the captions of a sample are": Nasty(
        name="t.csv",
        content="image,caption,captions\n0.png,a,other\n1.png,b,other\n1.png,c,other\n",
        samples=[(0, ["a"]), (1, ["b", "c"])],
        rows=3,
    ),
    "columns of one name beside one that has pandas' name for the second": Nasty(
        name="t.csv",
        content="image,note.1,note,note\n0.png,a,x,y\n",
        samples=[(0, ["a"])],
        columns=TableColumns(captions=["note.1"]),
        rows=1,
    ),
    "rows of pictures that are not there or none": Nasty(
        name="t.csv",
        content="image,caption\nno.png,a\n0.png,b\nno.png,c\nt.csv,d\nt.csv,e\n",
        samples=[(0, ["b"])],
        left_out={"missing file": 2, "unreadable picture": 2},
        rows=5,
    ),
    "Flickr30k's results.csv, with its row that lacks a separator": Nasty(
        name="results.csv",
        content='image_name| comment_number| comment\n0.png| 0| A man , in blue .\n0.png| 1| Two "boys" .\n'
        "1.png| 4   A dog runs .\n1.png| 3| A dog .\n",
        samples=[(0, ["A man , in blue .", 'Two "boys" .']), (1, ["A dog ."])],
        left_out={"no caption": 1},
        rows=4,
    ),
    "Flickr8k's captions.txt": Nasty(
        name="captions.txt",
        content='image,caption\n0.png,A child .\n0.png,"A girl , climbing ."\n1.png,A dog .\n',
        samples=[(0, ["A child .", "A girl , climbing ."]), (1, ["A dog ."])],
        rows=3,
    ),
    "Flickr8k.token.txt": Nasty(
        name="Flickr8k.token.txt",
        content='0.png#0\tA child , "alone" .\n0.png#1\t"A girl\n1.png.1#0\tgone\n1.png#0\tA dog .',
        samples=[(0, ['A child , "alone" .', '"A girl']), (1, ["A dog ."])],
        left_out={"missing file": 1},
        rows=4,
    ),
    "Flickr30k's results.token": Nasty(
        name="results_20130124.token",
        content="0.png#0\tA man .\n1.png#0\tA\ttab .\n",
        samples=[(0, ["A man ."])],
        left_out={"unreadable row": 1},
        rows=2,
    ),
    "bare quotes": Nasty(
        name="t.tsv",
        content='image\tcaption\n0.png\t"Hello" he said\n1.png\t"a\n2.png\tb"\n3.png\t""\n',
        samples=[(0, ['"Hello" he said']), (1, ['"a']), (2, ['b"']), (3, ['""'])],
        format=TextFormat(quoting=False),
        rows=4,
    ),
    "a quote that takes in the next row": Nasty(
        name="t.tsv",
        content='image\tcaption\n0.png\t"Hello there\n1.png\tgoodbye"\n2.png\t"in\ntwo lines"\n',
        samples=[(2, ["in\ntwo lines"])],
        left_out={"unreadable row": 1},
        rows=2,
    ),
    "a quote that takes in rows with commas, the picture last": Nasty(
        name="t.csv",
        content='caption,image\n"Hello,0.png\nwell, he said,1.png\nbye",2.png\n'
        '"first.png\nsecond, third\nfourth",3.png\n',
        samples=[(3, ["first.png\nsecond, third\nfourth"])],
        left_out={"unreadable row": 1},
        rows=2,
    ),
    "a quote that takes in a row of a picture of another kind": Nasty(
        name="t.csv",
        content='image,caption\n0.png,"a\n1.jpg,b"\n2.png,c\n',
        samples=[(2, ["c"])],
        left_out={"unreadable row": 1},
        rows=2,
    ),
    "a quote that takes in rows of pictures without an extension": Nasty(
        name="t.csv",
        content=lambda path: (
            [(path.parent / f"pic{number}").write_bytes(png(number)) for number in range(3)],
            path.write_text('image,caption\npic0,"a\npic1,b\npic2,c"\npic2,"in two lines,\nwith commas, too"\n'),
        ),
        samples=[(2, ["in two lines,\nwith commas, too"])],
        left_out={"unreadable row": 1},
        rows=2,
    ),
    "CC3M's TSV, without names of columns": Nasty(
        name="Train_GCC.tsv",
        content="a , dog\thttp://x.org/0.png\na cat\t1.png\n",
        samples=[(1, ["a cat"])],
        left_out={"a URL": 1},
        format=TextFormat(header=["caption", "image"]),
        rows=2,
    ),
    "spaces behind commas": Nasty(
        name="t.csv",
        content='caption, image, n\n"a dog, running", 0.png, 1\n"a cat", 1.png, 2\n',
        samples=[(0, ["a dog, running"]), (1, ["a cat"])],
        rows=2,
    ),
    "names of columns in capitals, empty ones, one twice": Nasty(
        name="t.csv",
        content=",Image,Caption,note,note,\n0,0.png,a,x,y,\n",
        samples=[(0, ["a"])],
        rows=1,
    ),
    "byte order marks": Nasty(
        name="t.csv",
        content='\ufeff"image","caption"\n"0.png","\ufeffa dog"\n"1.png","\ufeff"\n',
        samples=[(0, ["a dog"])],
        left_out={"no caption": 1},
        rows=2,
    ),
    "captions of nothing": Nasty(
        name="t.csv",
        content="image,caption\n0.png,&nbsp;\n1.png,\u200b\n2.png,\0\n3.png,&amp;nbsp; \u00a0\n"
        "0.png,a dog\n0.png,&nbsp;\x85\n",
        samples=[(0, ["a dog"])],
        left_out={"no caption": 5},
        rows=6,
    ),
    "lists in cells, as JSON, Python and numpy write them": Nasty(
        name="t.csv",
        content='image,caption\n0.png,"[""a"", ""b""]"\n1.png,"[\'c, d\', ""it\'s""]"\n2.png,"[\'e\' \'f\'\n \'g\']"\n'
        "3.png,[no list]\n",
        samples=[(0, ["a", "b"]), (1, ["c, d", "it's"]), (2, ["e", "f", "g"]), (3, ["[no list]"])],
        rows=4,
    ),
    "what is no picture at all": Nasty(
        name="t.csv",
        content=lambda path: (
            os.mkfifo(path.parent / "pipe.png"),
            path.write_text("image,caption\npipe.png,a\n/dev/zero,b\n0\0.png,c\n.,d\n0.png/x,e\n0.png,f"),
        ),
        samples=[(0, ["f"])],
        left_out={"unreadable picture": 4, "missing file": 1},
        rows=6,
    ),
    "a value of 200,000 letters": Nasty(
        name="t.csv",
        content=f"image,caption,note\n0.png,a,{'x' * 200_000}\n",
        samples=[(0, ["a"])],
        rows=1,
    ),
    "more text than training reads": Nasty(
        name="t.jsonl",
        content=lines(
            {"image": "0.png", "caption": "é" * (1 + MAX_TEXT // 2)},
            {"image": "1.png", "caption": ["a", "b"], "note": "x" * MAX_TEXT},
            {"image": "2.png", "caption": "c", "note": "x" * MAX_TEXT},
        ),
        samples=[(2, ["c"])],
        left_out={"unreadable row": 2},
        rows=3,
    ),
    "JSONL with broken lines": Nasty(
        name="t.jsonl",
        content=lines({"image": "0.png", "caption": ["a", None, " "]}, [1], {"image": "0.png", "caption": "b"})
        + '\n{"image": "1.png", "cap\n'
        + "[" * 100_000
        + '\n\ufeff{"image": "1.png", "caption": "\ufeffc"}',
        samples=[(0, ["a", "b"]), (1, ["c"])],
        left_out={"unreadable row": 3},
        rows=6,
    ),
    "JSONL by the name of JSON": Nasty(
        name="t.json",
        content=lines({"image": "0.png", "text": "a"}, {"image": "1.png", "text": "b"}, {"image": "0.png"}),
        samples=[(0, ["a"]), (1, ["b"])],
        left_out={"no caption": 1},
        rows=3,
    ),
    "a JSON list with an object per caption": Nasty(
        name="t.json",
        content=json.dumps([{"image": f"{n}.png", "caption": c} for n, c in ((0, "a"), (1, "b"), (0, "c"))]),
        samples=[(0, ["a", "c"]), (1, ["b"])],
        rows=3,
    ),
    "COCO with captions of no image, and an image without": Nasty(
        name="captions_val.json",
        content=json.dumps(COCO),
        samples=[(1, ["one", "two"]), (0, ["three"])],
        left_out={"no caption": 1, "no picture": 2},
        rows=5,
    ),
    "COCO files joined, with images of one id": Nasty(
        name="captions.json",
        content=json.dumps(
            {
                "images": [{"id": n, "file_name": f"{name}.png"} for n, name in ((1, 0), (1, 1), (2, 2), (2, 2))],
                "annotations": [{"image_id": n, "caption": c} for n, c in ((1, "of 0"), (1, "of 1"), (2, "a"))],
            }
        ),
        samples=[(2, ["a"])],
        left_out={"unreadable row": 2},
        rows=4,
    ),
    "Karpathy's json": Nasty(
        name="dataset_flickr30k.json",
        content=json.dumps(KARPATHY),
        samples=[(0, ["a", "b"]), (1, ["c"])],
        left_out={"no caption": 1, "no picture": 1},
        rows=4,
    ),
    "a split of Karpathy's json": Nasty(
        name="dataset_flickr30k.json",
        content=json.dumps(KARPATHY),
        samples=[(1, ["c"])],
        rows=1,
        splits=["test"],
    ),
    "parquet with a row per caption": Nasty(
        name="t.parquet",
        content=parquet(path=["0.png", "1.png", "0.png", "1.png", None], caption=["a", "b", "c", "", "d"]),
        samples=[(0, ["a", "c"]), (1, ["b"])],
        left_out={"no caption": 1, "no picture": 1},
        rows=5,
    ),
    "parquet that repeats its pictures": Nasty(
        name="t.parquet",
        content=parquet(
            image=[image(1, "x.png"), image(0, "x.png"), image(1), {"bytes": b"no", "path": "x"}, image(0)],
            caption=["a", "b", "c", "d", "e"],
        ),
        samples=[(1, ["a", "c"]), (0, ["b", "e"])],
        left_out={"unreadable picture": 1},
        rows=5,
    ),
    "a saved data set with lists and repeated pictures": Nasty(
        name="saved",
        content=arrow(image=[image(2), image(0), image(2)], sentences=[["a", "b"], ["c"], ["b", "d"]]),
        samples=[(2, ["a", "b", "d"]), (0, ["c"])],
        columns=TableColumns(captions=["sentences"]),
        rows=3,
    ),
}


def make(nasty: Nasty, folder: Path, *, group_rows: bool = True) -> tuple[Made, Path]:
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(number))
    path = folder / nasty.name
    match nasty.content:
        case str() as text:
            path.write_bytes(text.encode())
        case bytes() as data:
            path.write_bytes(data)
        case write:
            write(path)
    options = SourceOptions(columns=nasty.columns, text_format=nasty.format, splits=nasty.splits)
    out = folder / f"out{group_rows}"
    made = make_shards(open_rows([str(path)], options), str(out), MakeOptions(group_rows=group_rows), workers=1)
    return made, out


def samples_in(out: Path) -> Samples:
    with tarfile.open(out / "00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    numbers = {png(number): number for number in range(4)}
    found = []
    for key in dict.fromkeys(name.partition(".")[0] for name in members):
        record = json.loads(members.get(f"{key}.json", b"{}"))
        text = members[f"{key}.txt"].decode()
        captions = record.get("captions", [text])
        assert captions[0] == text
        found.append((numbers[members[f"{key}.png"]], captions))
    return found


@pytest.mark.parametrize("nasty", NASTY.values(), ids=NASTY.keys())
def test_each_row_is_a_sample_or_a_line(nasty: Nasty, tmp_path: Path) -> None:
    made, out = make(nasty, tmp_path)
    assert samples_in(out) == nasty.samples
    listed = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert Counter(line["reason"] for line in listed) == nasty.left_out == made.left_out
    assert len({line["row"] for line in listed}) == len(listed)
    assert made.num_samples + made.num_joined + len(listed) == made.num_rows == nasty.rows
    assert made.num_several == sum(len(captions) > 1 for _, captions in nasty.samples)


@pytest.mark.parametrize("name", ["a row per caption", "parquet that repeats its pictures"])
def test_rows_stay_apart_where_asked_for(name: str, tmp_path: Path) -> None:
    nasty = NASTY[name]
    made, out = make(nasty, tmp_path, group_rows=False)
    found = samples_in(out)
    assert made.num_samples + sum(nasty.left_out.values()) == nasty.rows == made.num_rows
    assert made.num_joined == made.num_several == 0
    assert len(found) == made.num_samples
    assert {(number, text) for number, (text,) in found} == {
        (number, text) for number, captions in nasty.samples for text in captions
    }
