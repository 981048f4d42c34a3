"""`clipx classify`, as a person calls it."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_clip import encoded, picture, write_classification_set

from clipx import cli
from clipx.printable import printable

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def clipx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `clipx ARGUMENTS` in this process, in an empty folder; gives exit code, stdout, stderr."""
    for name in ("CLIPX_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()  # of what made the model
        monkeypatch.setattr(sys, "argv", ["clipx", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr()
        assert isinstance(exit_info.value.code, int)
        return exit_info.value.code, output.out, output.err

    return run


@pytest.fixture
def model(transformers_folder: Callable[[str], Path]) -> Path:
    return transformers_folder("clip, quick_gelu")


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:02}.png").write_bytes(encoded(picture(i)))


def test_a_table_and_files_say_the_same(clipx: Run, model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "pictures" / "evil[red]\x1b[2J.png").write_bytes(b"")
    code, out, err = clipx(
        *("classify", model, "pictures", "--classes", '"cat, black",dog,<i>fox</i>', "--templates", "my {c}"),
        *("--json", "a/a.json", "--csv", "a/a.csv", "--html", "a/a.html"),
    )
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "a" / "a.json").read_text())
    assert (content["model"], content["templates"]) == (str(model), ["my {c}"])
    assert len(content["fingerprint"]) == 32
    rows = list(csv.DictReader((tmp_path / "a" / "a.csv").open()))
    assert [row["picture"] for row in rows] == [f"pictures/{i:02}.png" for i in range(3)]
    for row, told in zip(rows, content["pictures"], strict=True):
        assert row["class"] == told["classes"][0]["class"] in ("cat, black", "dog", "<i>fox</i>")
        assert float(row["probability"]) == told["classes"][0]["probability"]
        line = next(line for line in out.splitlines() if Path(row["picture"]).name in line)
        assert row["class"] in line
        assert f"{float(row['probability']):.1%}" in line
    assert r"left out: pictures/evil[red]\x1b[2J.png: unreadable picture (picture of 0 bytes)" in out
    assert "1 of 4 inputs are left out: 1 unreadable picture" in out
    assert all(printable(line) == line for line in out.splitlines())
    assert "<i>fox" not in (tmp_path / "a" / "a.html").read_text()
    assert len(list((tmp_path / "cache" / "classes").iterdir())) == 1
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "a").iterdir())
    code, *_ = clipx(
        *("classify", model, "pictures", "--classes", '"cat, black",dog,<i>fox</i>', "--templates", "my {c}"),
        *("--json", "a/a.json", "--csv", "a/a.csv", "--html", "a/a.html", "--no-cache"),
    )
    assert code == 0
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "a").iterdir()) == before


def test_a_long_list_is_counted_and_begun(clipx: Run, model: Path, tmp_path: Path) -> None:
    labels = [0] * 25
    folder = write_classification_set(tmp_path / "set", labels, class_names=["cat", "dog", "CAT"])
    code, out, _ = clipx("classify", model, folder / "test", "--classes", folder, "--top", 1, "--no-cache")
    assert code == 0
    assert "the first 10 of 25 pictures:" in out
    assert "mean probability" in out
    assert "CAT" not in out  # one with cat to the model, and the set's
    assert sum(line.startswith("│ s00") for line in out.splitlines()) == 10
    assert not (tmp_path / "cache").exists()


def test_with_multi_a_picture_may_have_none(clipx: Run, model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 2)
    code, out, _ = clipx("classify", model, "pictures", "--classes", "cat", "--multi", "--threshold", 1)
    assert code == 0
    assert "2 of 2 pictures have no class of probability 1 or more" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("MODEL text.png --classes a,b", "text.png: unreadable picture ("),
        ("MODEL text.png other.png --classes a,b", "none of 2 inputs is a picture; the first is text.png: unreadable"),
        ("MODEL 00.png --classes A,a", "--classes: 'a' stands twice, as entries 1 and 2; name it once"),
        ("MODEL 00.png --classes a,b --threshold nan", "Invalid value for '--threshold'"),
        ("MODEL 00.png --classes a,b --top 0", "Invalid value for '--top'"),
    ],
)
def test_bad_input_is_one_line(clipx: Run, model: Path, tmp_path: Path, arguments: str, message: str) -> None:
    for name in ("text.png", "other.png"):
        (tmp_path / name).write_text("text")
    (tmp_path / "00.png").write_bytes(encoded(picture(0)))
    code, out, err = clipx("classify", *(model if word == "MODEL" else word for word in arguments.split()))
    assert (code, out) == (2, "")
    assert err.startswith(f"clipx: error: {message}")
    assert err.count("\n") == 1
