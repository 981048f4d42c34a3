"""`clipx report` and `clipx compare` as a person types them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipx import cli

# torch may not be imported, and what others chose must not be markup in a terminal
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from clipx.cli import main; main()"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | {"COLUMNS": "160"}, capture_output=True, text=True, check=False)


def test_without_pictures_no_torch_is_needed(trained: Path, tmp_path: Path) -> None:
    done = run("report", trained, "--no-pictures", "--out", tmp_path / "r.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'r.html'}\n", "")
    assert "<figcaption>Loss</figcaption>" in (tmp_path / "r.html").read_text()


def test_a_comparison_is_a_table_and_a_page_if_asked_for(trained: Path, other: Path, tmp_path: Path) -> None:
    done = run("compare", trained, other, "--out", tmp_path / "c.html")
    assert (done.returncode, done.stderr) == (0, "")
    for told in ("first", "second", "seen, acc1", "optim.lr", "0.003", str(tmp_path / "c.html")):
        assert told in done.stdout, told
    assert "first against second" in (tmp_path / "c.html").read_text()


def test_the_sets_are_named_while_they_are_looked_at(
    trained: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = scenes / "wds_scenes_unseen"
    arguments = ["report", trained, "--out", tmp_path / "r.html", "--on", unseen, "--most-pictures", 10]
    monkeypatch.setattr(sys, "argv", ["clipx", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    told = capsys.readouterr()
    assert told.err == "looking at seen\nlooking at found\nlooking at wds_scenes_unseen\n"
    assert told.out == f"{tmp_path / 'r.html'}\n"
    assert "wds_scenes_unseen: right and wrong" in (tmp_path / "r.html").read_text()
