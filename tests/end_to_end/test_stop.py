"""A fit run is evaluated after each epoch, ends where it no longer improves, and its best step is saved and stays.

With `optim.lr=0` nothing changes, so the first evaluation stays the best.
"""

import shutil
from pathlib import Path

import pytest
from distributed.ranks import run_ranks
from fit_runs import tiny_fit, write_table_shards
from tiny import losses, results, saved_steps, status

from clipx.checkpoint.find import find_model
from clipx.config.fit import FitConfig
from clipx.train import evaluations, trainer
from clipx.train.saving import Saver
from clipx.train.trainer import train

STILL = ("optim.lr=0", "epochs=6", "checkpoint.keep_last=1", "stop={metric: colour/accuracy, patience: 2}")
REASON = "stop: colour/accuracy was no better than {value:.4g} of step 4 in 2 evaluations (patience 2)"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_shards(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def ended(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended early, at step 12 of 24."""
    folder = tmp_path_factory.mktemp("ended")
    assert train(tiny_fit(folder, shards, *STILL)) == 0
    return folder


@pytest.fixture
def stopped(ended: Path, shards: Path, tmp_path: Path) -> FitConfig:
    """The config of such a run, in a folder of its own."""
    shutil.copytree(ended, tmp_path / "run")
    return tiny_fit(tmp_path / "run", shards, *STILL)


@pytest.mark.parametrize(("stop", "kept"), [("null", [13]), ("{metric: loss}", [5, 10, 13])])
def test_every_epoch_is_evaluated_and_saved_if_it_is_the_best(
    stop: str, kept: list[int], shards: Path, tmp_path: Path
) -> None:
    config = tiny_fit(tmp_path, shards, "epochs=2.6", "checkpoint.keep_last=9", "global_batch_size=20", f"stop={stop}")
    assert train(config) == 0
    assert list(results(tmp_path, "val")) == [5, 10, 13]  # of 96 rows: 100, 200, 260 of 250
    assert saved_steps(tmp_path) == kept


def test_a_run_ends_where_it_is_no_better_and_says_why(stopped: FitConfig) -> None:
    found = results(stopped.run_dir, "val")
    assert list(found) == [4, 8, 12]
    reason = REASON.format(value=found[4]["colour/accuracy"])
    assert status(Path(stopped.run_dir)) == {"status": "complete", "step": 12, "reason": reason}
    assert len(losses(Path(stopped.run_dir))) == 12


def test_the_best_checkpoint_stays_and_is_the_model(stopped: FitConfig) -> None:
    assert saved_steps(stopped.run_dir) == [4, 12]  # the best, and keep_last=1
    assert find_model(stopped.run_dir).folder.name == "step-00000004"
    assert find_model(Path(stopped.run_dir, "checkpoints")).folder.name == "step-00000012"


def test_where_the_best_is_broken_the_next_best_is_the_model(
    stopped: FitConfig, caplog: pytest.LogCaptureFixture
) -> None:
    Path(stopped.run_dir, "checkpoints", "step-00000004", "config.yaml").write_text("run_dir: r\n")
    assert find_model(stopped.run_dir).folder.name == "step-00000012"
    assert "the checkpoint of step 4 is not usable (" in caplog.text
    caplog.clear()
    shutil.rmtree(Path(stopped.run_dir, "checkpoints", "step-00000004"))
    assert find_model(stopped.run_dir).folder.name == "step-00000012"
    assert "the checkpoint of step 4 is not usable (there is none); using the next best" in caplog.text
    assert len(caplog.records) == 1


def test_before_its_first_evaluation_the_newest_checkpoint_is_the_model(stopped: FitConfig) -> None:
    shutil.rmtree(Path(stopped.run_dir, "eval"))
    assert find_model(stopped.run_dir).folder.name == "step-00000012"


def test_a_start_after_the_end_changes_nothing(stopped: FitConfig) -> None:
    def written() -> dict[Path, int]:
        files = [path for path in Path(stopped.run_dir).rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: path.stat().st_mtime_ns for path in files if path.name != "status.json"}

    before, said = written(), status(Path(stopped.run_dir))
    assert train(stopped) == 0
    assert (written(), status(Path(stopped.run_dir))) == (before, said)


def test_with_more_patience_a_stopped_run_goes_on(stopped: FitConfig, shards: Path) -> None:
    more = (*STILL[:-1], "stop={metric: colour/accuracy, patience: 3}")
    assert train(tiny_fit(Path(stopped.run_dir), shards, *more)) == 0
    assert list(results(stopped.run_dir, "val")) == [4, 8, 12, 16]
    assert saved_steps(stopped.run_dir) == [4, 16]


def test_results_of_steps_that_come_again_do_not_count(stopped: FitConfig) -> None:
    before = results(stopped.run_dir, "val")
    shutil.rmtree(Path(stopped.run_dir, "checkpoints", "step-00000012"))
    assert train(stopped) == 0  # on from step 4
    assert results(stopped.run_dir, "val") == before
    assert saved_steps(stopped.run_dir) == [4, 12]


class Killed(BaseException):
    """As a kill: nothing of the run catches it."""


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_run_that_is_killed_beside_its_last_evaluation_ends_there(
    place: str, stopped: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, original = results(stopped.run_dir, "val"), evaluations._write_scores

    def kill(path: Path, scores: dict[str, object]) -> None:
        if place == "after":
            original(path, scores)
        raise Killed

    Path(stopped.run_dir, "eval", "val-00000012.json").unlink()
    monkeypatch.setattr(evaluations, "_write_scores", kill)
    with pytest.raises(Killed):
        train(stopped)
    assert not Path(stopped.run_dir, "status.json").exists()
    monkeypatch.undo()
    assert train(stopped) == 0
    assert results(stopped.run_dir, "val") == before
    assert status(Path(stopped.run_dir))["reason"] == REASON.format(value=before[4]["colour/accuracy"])
    assert len(losses(Path(stopped.run_dir))) == 12


def test_an_undefined_figure_is_no_better_and_is_said(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipx.evaluate.supervised.class_metrics", lambda *_: {})
    assert train(tiny_fit(tmp_path, shards, *STILL)) == 0
    assert status(tmp_path)["step"] == 8
    assert status(tmp_path)["reason"] == "stop: colour/accuracy was not defined in 2 evaluations (patience 2)"
    assert caplog.text.count("the held-out rows do not define colour/accuracy") == 2


def test_saving_beside_the_training_keeps_every_checkpoint_that_may_be_the_best(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Saver, "_is_busy", lambda self: True)  # as a storage that is always slower than the steps
    assert train(tiny_fit(tmp_path, shards, *STILL, "checkpoint.async_save=true")) == 0
    assert saved_steps(tmp_path) == [4, 12]


@pytest.mark.parametrize("kind", [pytest.param("ddp", marks=pytest.mark.full), "fsdp2"])
def test_all_ranks_end_together(kind: str, shards: Path, tmp_path: Path, stopped: FitConfig) -> None:
    config = tiny_fit(tmp_path / "two", shards, *STILL, f"parallel.type={kind}")
    assert run_ranks(trainer.train, 2, config) == [0, 0]
    assert saved_steps(config.run_dir) == [4, 12]
    assert results(config.run_dir, "val")[12] == results(stopped.run_dir, "val")[12]
