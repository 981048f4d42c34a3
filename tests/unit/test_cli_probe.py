"""`clipx zeroshot --probe --shots --knn`: tables, files, and what is refused."""

import csv
import io
import json
import shutil
import sys
from dataclasses import replace

import pytest
from tiny_clip import picture, tiny_pretrained, write_classification_set, write_retrieval_set

from clipx import cli, pretrained
from clipx.data.labelled import open_set
from clipx.data.suite_sets import places_of
from clipx.errors import InputError
from clipx.evaluate.features import image_features
from clipx.evaluate.knn import nearest_neighbours
from clipx.evaluate.probe import linear_probe

NAMES = ["cat", "dog", "fox"]
FULL = ("--probe", "--shots", "1, 2", "--seeds", "2", "--knn", "5")


@pytest.fixture
def clipx(monkeypatch, capsys, tmp_path):
    """Runs `clipx zeroshot 0 ARGUMENTS` with a tiny model."""
    for name in ("CLIPX_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "load", lambda path, *, device, weights: tiny_pretrained())
    monkeypatch.setattr(sys.modules["clipx.cli.zeroshot"], "require_model", lambda path: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["clipx", "zeroshot", "0", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr()
        return exit_info.value.code, output.out, output.err

    return run


@pytest.fixture
def folder(tmp_path):
    """wds_a with both parts, wds_b for retrieval, wds_c without a training part."""
    labels = [i * i % 3 for i in range(12)] + [2, 2, 2]
    write_classification_set(tmp_path / "wds_a", labels, class_names=NAMES)
    shutil.move(tmp_path / "wds_a" / "test", tmp_path / "wds_a" / "train")
    write_classification_set(tmp_path / "wds_a", [0, 1, 2, 2, 1, 0, 1], class_names=NAMES)
    write_classification_set(tmp_path / "wds_c", [0, 1, 2], class_names=NAMES)
    write_retrieval_set(tmp_path / "wds_b", [[f"picture {i}"] for i in range(5)])
    return tmp_path


def test_figures_are_printed_and_stored(clipx, folder):
    code, out, err = clipx("wds_a", "wds_b", *FULL, "--json", "f.json", "--csv", "f.csv", "--results", "r")
    assert (code, err) == (0, "")
    figures = json.loads((folder / "f.json").read_text())
    test, train = (
        image_features(tiny_pretrained(), open_set("wds_a", split=split), batch_size=256, group=None, cache=None)
        for split in ("test", "train")
    )
    for found in (
        linear_probe(train, test, class_names=NAMES),
        nearest_neighbours(train, test, class_names=NAMES, k=5),
    ):
        assert found.metrics.items() <= figures["wds_a"].items()
    few = figures["wds_a"]["probe_2_shot_acc1"], figures["wds_a"]["probe_2_shot_acc1_std"]
    assert f"{few[0]:.2%} ± {100 * few[1]:.1f}" in out
    assert f"{figures['wds_a']['probe_acc1']:.2%} (" in out
    assert not [name for name in figures["wds_b"] if name.startswith(("probe", "knn"))]
    rows = {row["task"]: row for row in csv.DictReader(io.StringIO((folder / "f.csv").read_text()))}
    assert list(rows) == ["zeroshot_classification", "knn", "few_shot_probe", "linear_probe", "zeroshot_retrieval"]
    assert float(rows["linear_probe"]["lp_acc1"]) == figures["wds_a"]["probe_acc1"]
    stored = json.loads(next((folder / "r").glob("a_*_linear_probe.json")).read_text())
    assert (stored["task"], stored["metrics"]["lp_acc1"]) == ("linear_probe", figures["wds_a"]["probe_acc1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wds_c", "--probe"), "--probe and --knn need a training part: wds_c has no split 'train'"),
        (("wds_b", "--knn", "3"), "--probe and --knn need a set with one class per image"),
        (("wds_a", "--split", "train", "--probe"), "wds_a: the part to measure is the training part"),
        (("wds_a", "--shots", "1"), "--shots 1 is for --probe"),
        (("wds_a", "--probe", "--shots", "1,x"), "--shots 1,x: 'x' is no number of images above 0"),
        (("wds_a", "--probe", "--shots", "0"), "--shots 0: '0' is no number of images above 0"),
        (("wds_a", "--probe", "--shots", "1,"), "--shots 1,: a number is missing"),
        (("wds_a", "--probe", "--shots", "9"), "--shots 9: class 'fox' has 3 training images"),
        (("wds_a", "--knn", "16"), "--knn 16: the training part has 15 images"),
    ],
)
def test_what_cannot_be_is_refused(clipx, folder, arguments, message):
    code, out, err = clipx(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"clipx: error: {message}")
    assert err.count("\n") == 1


def test_classes_that_do_not_train_are_refused(clipx, folder):
    for split, names in (("train", "abc"), ("test", "abd")):
        for name in names:
            place = folder / "pictures" / split / name
            place.mkdir(parents=True)
            picture(ord(name)).save(place / "1.png")
    code, _, err = clipx("pictures", "--knn", "1")
    assert code == 2
    assert err.startswith("clipx: error: --knn: test images of d, but no training image")


def test_a_training_part_of_other_classes_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (place,) = places_of(["wds_a"])
    other = replace(place.opened(), class_names=("cat", "dog"))
    with pytest.raises(InputError, match="wds_a: its training part has other classes than its test part"):
        place.training_part(other)
