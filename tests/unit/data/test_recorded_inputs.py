import json
from pathlib import Path
from typing import Any

import pytest
from shard_files import write_shards
from tiny_clip import encoded, picture

from clipx.data.inputs import InputOptions, open_inputs
from clipx.data.recorded_inputs import at_folder, record_of, reopen
from clipx.data.rows.opening import SourceOptions
from clipx.data.rows.row import TableColumns
from clipx.errors import InputError
from clipx.printable import REDACTED


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, a table of them, and shards."""
    folder = tmp_path / "things"
    (folder / "pictures").mkdir(parents=True)
    for i in range(3):
        (folder / "pictures" / f"{i}.png").write_bytes(encoded(picture(i)))
    (folder / "table.csv").write_text("where,what\n2.png,two\n0.png,zero\n")
    write_shards(folder / "shards", [2, 2])
    monkeypatch.chdir(folder)
    return folder


def test_the_same_items_from_another_folder(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = TableColumns(image="where", captions=["what"])
    options = InputOptions(source=SourceOptions(columns=columns, image_folder=Path("pictures")))
    opened = [open_inputs(["table.csv"], options), open_inputs(["pictures/1.png", "shards/{00000..00001}.tar"])]
    records = [json.loads(json.dumps(record_of(inputs))) for inputs in opened]
    before = [[inputs.read(i) for i in range(len(inputs))] for inputs in opened]
    monkeypatch.chdir(tmp_path)
    for record, items in zip(records, before, strict=True):
        again = reopen(record)
        assert len(again) == len(items)
        for i, item in enumerate(items):
            assert again.read(i).image == item.image
            assert again.read(i).captions == item.captions
            assert again.read(i).name in (item.name, at_folder(record, item.name))


def test_places(things: Path) -> None:
    record = record_of(open_inputs(["pictures"]))
    assert at_folder(record, "a/../b.tar 7") == f"{things}/b.tar 7"
    assert at_folder(record, "a.tar::/b.tar") == f"{things}/a.tar::/b.tar"
    for address in ("https://h/a.tar", "pipe:cat x"):
        assert at_folder(record, address) == address
    assert at_folder(record, "~/x") == str(Path("~/x").expanduser())


def test_secrets_are_not_written_down(things: Path) -> None:
    inputs = open_inputs(["pictures"])
    inputs.addresses = ("https://h/a.tar?token=0123456789abcdef01234",)
    record = record_of(inputs)
    assert "0123456789abcdef" not in json.dumps(record)
    with pytest.raises(InputError, match=f"{REDACTED} had a secret that is not stored; its pictures cannot be read"):
        reopen(record)


@pytest.mark.parametrize("change", [{"options": None}, {"options": {}}, {"addresses": None}, {"addresses": [3]}])
def test_damage(things: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the record of the inputs is damaged"):
        reopen(record_of(open_inputs(["pictures"])) | change)
