"""Runs side by side: final figures with differences, curves over steps and pairs, what differs in the configs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE, assert_harmless

from clipx.errors import InputError
from clipx.report.compare import comparison_page, config_rows, final_rows, read_runs, version_rows


def written(folder: Path, rows: list[dict[str, Any]], **evaluations: dict[str, float]) -> Path:
    """A run folder with these rows, and the scores of evaluations after step 2."""
    (folder / "eval").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, scores in evaluations.items():
        (folder / "eval" / f"{name}-00000002.json").write_text(json.dumps({"step": 2, "name": name, **scores}))
    return folder


def test_figures_stand_beside_their_differences(tmp_path: Path) -> None:
    one = written(tmp_path / "a", [{"step": 2, "samples_seen": 20, "loss": 2.0}], seen={"acc1": 0.5}, mine={"r": 0.25})
    two = written(tmp_path / "b", [{"step": 2, "samples_seen": 30, "loss": 1.5}], seen={"acc1": 0.625})
    rows = {row[0]: row[1:] for row in final_rows(read_runs([one, two]))}
    assert rows["pairs seen"] == ["20", "30 (+10)"]
    assert rows["loss"] == ["2", "1.5 (-0.5)"]
    assert rows["seen, acc1"] == ["50.00%", "62.50% (+12.50)"]
    assert rows["mine, r"] == ["25.00%", ""]
    assert "skipped steps" not in rows


def test_trained_runs(trained: Path, other: Path) -> None:
    runs = read_runs([trained, other])
    assert [run.name for run in runs] == ["first", "second"]
    rows = {row[0]: row[1:] for row in config_rows(runs)}
    assert rows["optim.lr"] == ["0.001", "0.003"]
    assert rows["steps"] == ["6", "4"]
    assert "run_dir" not in rows
    assert version_rows(runs) == []
    html = comparison_page(runs)
    for told in ("first against second", "Curves by pairs seen", "<figcaption>seen, acc1</figcaption>", "optim.lr"):
        assert told in html, told
    assert html.count("<figcaption>Loss</figcaption>") == 2  # over steps, and over pairs


def test_an_evaluation_between_two_rows_stands_at_its_pairs(tmp_path: Path) -> None:
    rows = [{"step": 4, "samples_seen": 40, "loss": 2.0}, {"step": 8, "samples_seen": 80, "loss": 1.0}]
    one = written(tmp_path / "a", rows, seen={"acc1": 0.5})
    for step in (6, 9):
        (one / "eval" / f"seen-{step:08}.json").write_text(json.dumps({"step": step, "name": "seen", "acc1": 0.25}))
    html = comparison_page(read_runs([one, written(tmp_path / "b", [])]))
    *_, over_pairs = html.split("<figcaption>seen, acc1</figcaption>")
    assert re.findall(r"<title>a: (\d+), ", over_pairs) == ["20", "60", "90"]


def test_an_evaluation_that_one_run_alone_has_is_a_difference(trained: Path, other: Path) -> None:
    rows = {row[0]: row[1:] for row in config_rows(read_runs([trained, other]))}
    assert rows["evaluate.found.type"] == ["retrieval", "null"]
    assert rows["evaluate.found.data"][1] == "null"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [written(tmp_path / name / "run", []) for name in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]


def test_one_that_has_nothing_yet(trained: Path, tmp_path: Path) -> None:
    html = comparison_page(read_runs([trained, written(tmp_path / "empty", [])]))
    assert "Their configs cannot be read: empty." in html
    none = comparison_page(read_runs([written(tmp_path / "x", []), written(tmp_path / "y", [])]))
    assert "None of the runs has figures yet." in none
    assert "None of the runs has been evaluated yet." in none


def test_versions_that_differ(trained: Path, tmp_path: Path) -> None:
    newer = shutil.copytree(trained, tmp_path / "newer")
    state = newer / "checkpoints" / "step-00000006" / "state.json"
    content = json.loads(state.read_text())
    content["versions"]["torch"] = HOSTILE
    state.write_text(json.dumps(content))
    runs = read_runs([trained, newer])
    assert [row[0] for row in version_rows(runs)] == ["torch"]
    assert_harmless(comparison_page(runs))


def test_hostile_names(tmp_path: Path) -> None:
    folders = [written(tmp_path / f"<script>{i}", [{"step": 1, "loss": 2.0}], x={HOSTILE: 0.5}) for i in range(2)]
    assert_harmless(comparison_page(read_runs(folders)))


def test_what_cannot_be_compared_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="first: a comparison needs two runs or more; name another"):
        read_runs([trained])
    with pytest.raises(InputError, match="first is named twice; name each run once"):
        read_runs([trained, trained.parent / "." / "first"])
    with pytest.raises(InputError, match="none: no such folder"):
        read_runs([trained, tmp_path / "none"])
