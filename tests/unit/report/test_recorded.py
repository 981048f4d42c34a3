"""What is read of a run folder, in whatever state it is, and which folders are refused."""

import json
import shutil
from pathlib import Path

import pytest

from clipx.errors import InputError
from clipx.report.recorded import read_run


def test_a_run_in_two_starts(trained: Path) -> None:
    run = read_run(trained)
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4, 5, 6]
    assert [result.step for result in run.evaluations["seen"]] == [2, 4, 6]
    assert [result.step for result in run.evaluations["found"]] == [6]
    assert set(run.evaluations["seen"][0].scores) == {"acc1", "acc5", "mean_per_class_recall"}
    for results in run.evaluations.values():
        (last, *_) = results[::-1]
        assert last.intervals
        for metric, (low, high) in last.intervals.items():
            assert 0 <= low <= last.scores[metric] <= high <= 1
    assert run.status["status"] == "complete"
    assert run.config is not None
    assert run.config.steps == 6
    assert run.state is not None
    assert run.state.progress.step == run.step == 6
    assert [row["step"] for row in run.starts] == [0, 4]
    assert run.starts[0]["hosts"][0] | {"host": ""} == {"host": "", "device": "cpu", "ranks": 1}
    assert run.versions["torch"]


def test_figures_and_gaps_in_them(tmp_path: Path) -> None:
    rows = [{"step": 2, "loss": None}, {"step": 1, "loss": 3.0}, {"step": 3}, {"step": 2, "loss": 2.5}, {"loss": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    run = read_run(tmp_path)
    assert run.points("loss") == [(1.0, 3.0), (2.0, 2.5)]
    assert run.last("loss") == 2.5
    assert run.last("nothing") is None
    assert run.step == 3


@pytest.mark.parametrize("name", ["metrics.jsonl", "status.json", "config.yaml"])
def test_a_run_of_which_hardly_anything_is_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    run = read_run(tmp_path)
    assert (run.rows, run.status, run.checkpoints, run.step) == ([], {}, [], 0)
    assert run.config is None
    assert run.config_problem


def test_strange_files_count_as_absent(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('[1]\n{"step": "x"}\n\0\0\n')
    (tmp_path / "status.json").write_text("[" * 5000)
    (tmp_path / "eval").mkdir()
    for name, content in {"a-00000001.json": "{", "b-00000001.json": '{"step": 1, "name": 3}', "c.json": "{}"}.items():
        (tmp_path / "eval" / name).write_text(content)
    run = read_run(tmp_path)
    assert (run.rows, run.status, run.evaluations) == ([], {}, {})


def test_a_moved_run_has_its_own_checkpoints(trained: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(trained, tmp_path / "moved")
    shutil.rmtree(moved / "checkpoints" / "step-00000006")
    assert read_run(moved).checkpoints == [4]


def test_what_is_no_run_folder_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; give a run folder"):
        read_run(tmp_path / "none")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"a\.txt: is a file; give a run folder"):
        read_run(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"is no run folder: it has no metrics\.jsonl, .* give the run_dir"):
        read_run(tmp_path)
    with pytest.raises(InputError, match=r"is no run folder: .* did you mean .*/first\?"):
        read_run(trained.parent)
    with pytest.raises(InputError, match="is a model and no run folder"):
        read_run(trained / "checkpoints" / "step-00000006")
