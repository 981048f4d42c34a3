"""Keys of samples from a column: unique, fit for a tar, and refused before anything is made."""

from pathlib import Path

import numpy as np
import pytest
from made_shards import make, opened, samples
from shard_files import png, write_shards

from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.subset import Subset
from clipx.errors import InputError


def write_table(folder: Path, keys: list[object]) -> Path:
    lines = [f"{number}.png,c{number},{key}" for number, key in enumerate(keys)]
    (folder / "t.csv").write_text("\n".join(["image,caption,id", *lines]))
    for number in range(len(keys)):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder / "t.csv"


def test_cells_without_what_cuts_the_name_of_a_member(tmp_path: Path) -> None:
    rows = opened(write_table(tmp_path, [" a b ", "shoes/x.jpg", 3.0, "0.50"]))
    make(rows, tmp_path / "out", key="id")
    found = samples(tmp_path / "out")
    assert {key: fields["txt"] for key, fields in found.items()} == {
        "a b": b"c0",
        "shoes_x_jpg": b"c1",
        "3": b"c2",
        "0_50": b"c3",
    }


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", " ", "c"], "--key id: row 1 is empty, or cannot be read; every row needs a key"),
        (["a", "b", "a"], "--key id: rows 0 and 2 have one key, 'a'"),
        (["x.1", "x/1", "c"], "--key id: rows 0 and 1 have one key, 'x_1'"),
        (["a", "b\x07", "c"], r"--key id: row 1 holds 'b\\x07'; a key has no control characters"),
        (["a", "b", "é" * 501], "--key id: row 2 holds 1,002 bytes"),
    ],
)
def test_what_is_no_key_ends_it_before_anything_is_made(tmp_path: Path, keys: list[str], message: str) -> None:
    table = write_table(tmp_path, keys)
    with pytest.raises(InputError, match=message):
        make(opened(table), tmp_path / "out", key="id")
    assert not list((tmp_path / "out").iterdir())
    make(opened(write_table(tmp_path, ["a", "b", "c"])), tmp_path / "out", key="id")
    assert sorted(samples(tmp_path / "out")) == ["a", "b", "c"]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--key ID: there is no column 'ID'; did you mean 'id'\? The columns are image"
    ):
        make(opened(write_table(tmp_path, ["a"])), tmp_path / "out", key="ID")


def test_rows_of_a_picture_have_the_key_of_the_first(tmp_path: Path) -> None:
    table = write_table(tmp_path, ["a", "b", "c"])
    table.write_text("image,caption,id\n0.png,c0,a\n1.png,c1,b\n0.png,c2,a\n")
    made = make(open_rows([str(table)], SourceOptions()), tmp_path / "out", key="id")
    assert (sorted(samples(tmp_path / "out")), made.num_joined) == (["a", "b"], 1)
    with pytest.raises(InputError, match="rows 0 and 2 have one key"):
        make(open_rows([str(table)], SourceOptions()), tmp_path / "apart", key="id", group_rows=False)


def test_samples_of_shards_by_a_field_of_their_json(tmp_path: Path) -> None:
    replaced = {
        number: {"png": png(number), "txt": b"a", "json": b'{"id": %d.0}' % (7 + number)} for number in range(3)
    }
    write_shards(tmp_path / "in", [3], replaced=replaced)
    make(open_rows([str(tmp_path / "in")], SourceOptions()), tmp_path / "out", key="id")
    assert sorted(samples(tmp_path / "out")) == ["7", "8", "9"]


def test_a_part_of_the_rows_keeps_their_numbers(tmp_path: Path) -> None:
    part = Subset(opened(write_table(tmp_path, ["a", "b", "", "d"])), np.array([1, 3]))
    make(part, tmp_path / "numbers")
    assert sorted(samples(tmp_path / "numbers")) == ["000000001", "000000003"]
    make(part, tmp_path / "keys", key="id")
    assert sorted(samples(tmp_path / "keys")) == ["b", "d"]
    other = Subset(opened(tmp_path / "t.csv"), np.array([1, 2]))
    with pytest.raises(InputError, match="row 2 is empty"):
        make(other, tmp_path / "other", key="id")
