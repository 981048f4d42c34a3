import csv
import json
from pathlib import Path

import fit
import fit_real
import pytest
from fitting import read_table
from shard_files import write_shards
from tiny_clip import encoded, picture, tiny_pretrained

from clipx.demo.product_table import write_product_table
from clipx.export import huggingface
from clipx.export.options import ExportOptions

SMALL = ("--overrides", "epochs=1", "global_batch_size=8", "optim.warmup_steps=1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    huggingface.write(tiny_pretrained(), folder, ExportOptions())
    return str(folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("table") / "products"
    write_product_table(out, num_train=30, num_test=20, image_size=16, seed=0)
    return str(out)


def rows(*arguments: str, out: Path) -> list[dict[str, str]]:
    fit.main([*arguments, *SMALL, "--out", str(out)])
    with (out / "fit.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.full
def test_gift_has_a_row_for_each_head_fusion_and_seed(tmp_path: Path, model: str, table: str) -> None:
    found = rows("gift", model, "--table", table, "--seeds", "1", "--fusions", "late", out=tmp_path)
    assert [(row["head"], row["fusion"], row["seed"]) for row in found] == [
        ("linear", "late", "0"),
        ("default", "late", "0"),
    ]
    for row in found:
        assert all(0 <= float(row[view]) <= 1 for view in ("both", "as_it_is", "photo", "title"))
        assert float(row["photo"]) == pytest.approx(round(16 * float(row["photo"])) / 16)  # of 20 rows 4 have none


@pytest.mark.full  # three runs
def test_inputs_stand_beside_what_is_possible(tmp_path: Path, model: str, table: str) -> None:
    found = rows("inputs", model, "--table", table, out=tmp_path)
    assert [row["target"] for row in found] == ["category", "price", "gift"]
    assert all(float(row["both"]) <= 1 and row["only_photo"] and row["only_title"] for row in found)
    assert [float(row["best_both"]) for row in found] == pytest.approx([1, 0.95, 1], abs=0.05)  # of 12 rows


@pytest.fixture
def emoji(tmp_path: Path) -> Path:
    """The shards of a set, of which val has pictures of train."""

    def sample(number: int) -> dict[str, bytes]:
        record = {"keywords": [("cat", "dog")[number % 2], "face", "more"], "group": ("a", "b")[number % 2]}
        return {"png": encoded(picture(number)), "json": json.dumps(record).encode()}

    for split, count in (("train", 24), ("val", 8)):
        write_shards(tmp_path / "set" / split, [count], replaced={number: sample(number) for number in range(count)})
    return tmp_path / "set"


def test_real_pictures_become_tables(emoji: Path, tmp_path: Path) -> None:
    target, words = fit_real.TARGETS["emoji"]
    for split in ("train", "val"):
        fit_real.write_table(emoji / split, tmp_path, target=target, words=words)
    train, val = (read_table(tmp_path / f"{split}.csv", picture="picture") for split in ("train", "val"))
    assert (len(train), len(val)) == (24, 8)
    assert (train[1]["words"], train[1]["group"]) == ("dog, face", "b")
    assert Path(train[1]["picture"]).read_bytes() == encoded(picture(1)) == Path(val[1]["picture"]).read_bytes()


@pytest.mark.full  # three runs
def test_real_pictures_are_predicted_from_both_and_from_each(tmp_path: Path, model: str, emoji: Path) -> None:
    (found,) = rows("real", model, "--set", str(emoji), "--kind", "emoji", out=tmp_path)
    assert (found["target"], found["trivial"]) == ("group", "0.5")
    assert all(0 <= float(found[name]) <= 1 for name in ("both", "picture", "words"))
