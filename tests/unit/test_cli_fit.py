"""`clipx fit` and `clipx predict` as a person calls them: from a table to predictions of its rows."""

import csv
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from stored_averages import stored

import clipx
from clipx import cli
from clipx.pretrained import Fitted
from clipx.storage.json_rows import read_rows

Run = Callable[..., tuple[int, str, str]]

COLOURS = {"ring": (200, 0, 0), "disc": (0, 200, 0)}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `clipx ARGUMENTS`; gives exit code, stdout, stderr."""
    for name in ("CLIPX_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipx", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr()
        assert isinstance(exit_info.value.code, int)
        return exit_info.value.code, output.out, output.err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 60 products with their photographs, and an encoder."""
    folder = tmp_path_factory.mktemp("shop")
    stored(folder / "encoder")
    draw, rows = random.Random(0), []
    for row in range(60):
        shape = draw.choice(list(COLOURS))
        Image.new("RGB", (24, 24), COLOURS[shape]).save(folder / f"{row}.png")
        brand = draw.choice(["acme", "bolt"])
        price = (10 if shape == "ring" else 30) * (2 if brand == "acme" else 1) * draw.uniform(0.9, 1.1)
        photo = "" if row % 5 == 1 else f"{row}.png"
        rows.append({"photo": photo, "title": "" if row % 5 == 2 else brand, "shape": shape, "price": f"{price:.2f}"})
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _fit(folder: Path, out: Path, *more: str) -> list[str]:
    said = ["--image", "photo", "--text", "title", "--target", "shape,price", "--model", str(folder / "encoder")]
    few = ["--epochs", "4", "track.wandb=disabled", "data.workers=0", "checkpoint.every_minutes=0"]
    return ["fit", str(folder / "table.csv"), *said, "--out", str(out), *few, *more]


def test_a_table_becomes_a_model_and_the_model_predicts_it(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, text, _ = run(*_fit(folder, out))
    assert code == 0
    assert "targets.shape" in text
    assert f"the whole config: {out}/fit.yaml" in text
    table = text[text.index("rows that training did not see") :]
    for word in ("trivial", "picture alone", "text alone", "all inputs", "all rows", "accuracy", "mae"):
        assert word in table
    steps = len(read_rows(out / "metrics.jsonl"))
    config = (out / "fit.yaml").read_bytes()

    code, again, _ = run(*_fit(folder, out))  # it is complete: nothing is trained, and the table comes again
    assert (code, again[again.index("rows that training did not see") :]) == (0, table)
    assert (len(read_rows(out / "metrics.jsonl")), (out / "fit.yaml").read_bytes()) == (steps, config)

    code, said, _ = run("predict", out, folder / "table.csv", "--out", tmp_path / "out.csv")
    assert (code, said.splitlines()[0]) == (0, f"{tmp_path}/out.csv: predictions for 60 rows of {folder}/table.csv")
    assert "12 of them without photo" in said
    with open(tmp_path / "out.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    model = clipx.load(out)
    assert isinstance(model, Fitted)
    with open(folder / "table.csv", newline="") as file:
        rows = [row | {"photo": folder / row["photo"] if row["photo"] else None} for row in csv.DictReader(file)]
    for line, row in zip(lines, model.predict(rows), strict=True):
        assert (line["shape"], line["problem"]) == (row["shape"], "")
        assert float(line["price"]) == pytest.approx(row["price"], rel=1e-5)
    assert [line["present"] for line in lines[:3]] == ["photo;title", "title", "photo"]


def test_another_command_for_the_same_folder_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*_fit(folder, out, "--epochs", "1"))[0] == 0
    code, _, error = run(*_fit(folder, out, "--epochs", "2"))
    assert code == 2
    assert f"{out}/fit.yaml is of another fit (" in error
    assert error.count("\n") == 1
    code, _, _ = run("train", out / "fit.yaml")  # which is complete
    assert code == 0


def test_what_came_of_a_wrong_command_is_corrected_in_its_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, _, error = run(*_fit(folder, out, "--val", str(folder / "absent.csv")))
    assert code == 2
    assert "absent.csv" in error
    shutil.copy(folder / "table.csv", folder / "held.csv")
    assert run(*_fit(folder, out, "--val", str(folder / "held.csv"), "--epochs", "1"))[0] == 0


def test_predicting_says_what_is_wrong(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*_fit(folder, out, "--epochs", "1"))[0] == 0
    titles, results = tmp_path / "titles.csv", tmp_path / "out.csv"
    titles.write_text("title\nacme\n \n")
    code, _, error = run("predict", out, titles, "--out", results)
    assert (code, error) == (
        2,
        f"clipx: error: {titles}: no column 'photo', from which this model predicts (there are: title); add what is "
        "missing, or give --absent\n",
    )
    code, said, _ = run("predict", out, titles, "--out", results, "--absent")
    assert (code, said.splitlines()) == (
        0,
        [
            f"{results}: predictions for 1 rows of {titles}",
            "1 of them without photo",
            "1 rows without a prediction:",
            "  row 1: none of the inputs is there (photo, title)",
        ],
    )
