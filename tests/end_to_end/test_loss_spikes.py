"""A loss spike: the run rolls back, skips batches, and ends as one that never had them."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import losses, saved_tensors, tiny_config

from clipx.checkpoint.background import Background
from clipx.config.schema import RunConfig
from clipx.errors import RunError
from clipx.storage import folders
from clipx.train import saving, trainer
from clipx.train.liveness.watchdog import Watchdog
from clipx.train.loss_spikes import Rollback, SpikeDetector
from clipx.train.metrics.step_metrics import InFlightStep, StepMetrics
from clipx.train.saving import Saver
from clipx.train.trainer import train

STEPS = 20
Fails = Callable[[StepMetrics], bool]


def config(run_dir: Path, scenes: Path, *overrides: str) -> RunConfig:
    settings = ["checkpoint.every_steps=3", "spikes={z_score: 20, window: 8, leave_out: 2}", *overrides]
    return tiny_config(run_dir, scenes / "train", f"steps={STEPS}", *settings)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fails], None]:
    """Makes the loss that is read of some steps ten times as high."""
    read = InFlightStep.read

    def apply(fails: Fails) -> None:
        def spoilt(self: InFlightStep) -> StepMetrics:
            outcome = read(self)
            return (
                replace(outcome, figures={**outcome.figures, "loss": 10 * outcome.loss}) if fails(outcome) else outcome
            )

        monkeypatch.setattr(InFlightStep, "read", spoilt)

    return apply


@pytest.fixture
def without(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The same run, told from the start what to skip."""

    def run(*batches: int) -> Path:
        build = trainer.build_run
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "build_run", lambda c, r, _, **options: build(c, r, Rollback(batches, 0), **options))
            assert train(config(tmp_path / "without", scenes)) == 0
        return tmp_path / "without"

    return run


def assert_same(run_dir: Path, other: Path) -> None:
    assert losses(run_dir) == losses(other)
    ends = [
        saved_tensors(folder / "checkpoints" / f"step-{STEPS:08d}", folder / "scratch") for folder in (run_dir, other)
    ]
    assert [name for name in ends[0] if not ends[0][name].equal(ends[1][name])] == []


def test_back_and_on_without_the_batches(
    scenes: Path, tmp_path: Path, spoil: Callable[[Fails], None], without: Callable[..., Path]
) -> None:
    spoil(lambda outcome: outcome.batch == 13)
    assert train(config(tmp_path / "run", scenes)) == 0
    (row,) = map(json.loads, (tmp_path / "run" / "rollbacks.jsonl").read_text().splitlines())
    assert (row["step"], row["back_to"], row["left_out"]) == (14, 12, [12, 13])
    state = json.loads((tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}" / "state.json").read_text())
    progress = state["progress"]
    assert (progress["left_out"], progress["rollbacks"], progress["next_batch"]) == ([12, 13], 1, STEPS + 2)
    assert_same(tmp_path / "run", without(12, 13))


@pytest.mark.parametrize("by", ["stop", "time"])
def test_a_stop_or_a_save_by_time_before_a_spike_changes_nothing(
    scenes: Path,
    tmp_path: Path,
    spoil: Callable[[Fails], None],
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    """Step 14 is saved, which the schedule would not; the spike at step 15 goes back to 12 all the same."""
    asked: list[int] = []

    def fails(outcome: StepMetrics) -> bool:
        if by == "stop" and outcome.step == 11 and not asked:
            os.kill(os.getpid(), signal.SIGTERM)  # asked for with step 13, obeyed after step 14
            asked.append(outcome.step)
        return outcome.batch == 14

    settings = ["spikes.leave_out=1", "checkpoint.keep_last=1"]
    with monkeypatch.context() as patch:
        spoil(fails)
        if by == "time":
            patch.setattr(Saver, "is_late", lambda saver: saver._run.progress.step == 12)
        code = train(config(tmp_path / "run", scenes, *settings))
        assert code == (85 if by == "stop" else 0)
    if by == "stop":
        assert (tmp_path / "run" / "checkpoints" / "step-00000014").exists()
        assert train(config(tmp_path / "run", scenes, *settings)) == 0
    asked.append(0)
    assert train(config(tmp_path / "plain", scenes, *settings)) == 0
    rows = [(tmp_path / name / "rollbacks.jsonl").read_text() for name in ("run", "plain")]
    assert rows[0] == rows[1]
    assert (json.loads(rows[0])["back_to"], json.loads(rows[0])["left_out"]) == (12, [14])
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


def test_a_checkpoint_that_is_still_being_written_is_waited_for(
    scenes: Path, tmp_path: Path, spoil: Callable[[Fails], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(lambda outcome: outcome.batch == 13)
    opened, activities, waited_in = threading.Event(), [], []
    create, look, take, set_activity = folders.Folder.create, SpikeDetector.look, Background.take, Watchdog.set_activity

    @contextmanager
    def gated(folder: Any, name: str) -> Iterator[Any]:
        assert "00000012" not in str(folder) or opened.wait(60)
        with create(folder, name) as file:
            yield file

    def looked(detector: SpikeDetector, loss: float) -> float | None:
        z_score = look(detector, loss)
        if z_score is not None:
            threading.Timer(0.2, opened.set).start()
        return z_score

    def taken(background: Background[Any], *arguments: Any) -> Any:
        waited_in.append(activities[-1])
        return take(background, *arguments)

    monkeypatch.setattr(folders.Folder, "create", gated)
    monkeypatch.setattr(SpikeDetector, "look", looked)
    monkeypatch.setattr(Background, "take", taken)
    monkeypatch.setattr(Watchdog, "set_activity", lambda *a, **k: activities.append(a[1]) or set_activity(*a, **k))
    monkeypatch.setattr(saving, "_PATIENCE_S", 0.0)
    assert train(config(tmp_path / "run", scenes, "checkpoint.async_save=true", "checkpoint.every_steps=12")) == 0
    (row,) = map(json.loads, (tmp_path / "run" / "rollbacks.jsonl").read_text().splitlines())
    assert (row["back_to"], row["left_out"]) == (12, [12, 13])
    assert set(waited_in) == {"save"}  # in which a rank has more time than in a step


def test_killed_during_a_rollback_it_rolls_back_again(
    scenes: Path,
    tmp_path: Path,
    spoil: Callable[[Fails], None],
    without: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(lambda outcome: outcome.batch in (13, 16))
    build, starts = trainer.build_run, []

    def killed_after_both(*arguments: object, **options: object) -> object:
        starts.append(arguments[2])
        if len(starts) == 3:
            raise KeyboardInterrupt
        return build(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "build_run", killed_after_both)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path / "run", scenes))
    assert starts == [None, Rollback((12, 13), 1), Rollback((12, 13, 15, 16), 2)]
    assert train(config(tmp_path / "run", scenes)) == 0
    assert len((tmp_path / "run" / "rollbacks.jsonl").read_text().splitlines()) == 2
    assert_same(tmp_path / "run", without(12, 13, 15, 16))


def test_a_loss_that_spikes_again_and_again_ends_the_run(
    scenes: Path, tmp_path: Path, spoil: Callable[[Fails], None]
) -> None:
    spoil(lambda outcome: outcome.step >= 14)
    with pytest.raises(
        RunError, match=r"the loss spiked to .* at step 14, .* after 2 rollbacks \(spikes.max_rollbacks\)"
    ):
        train(config(tmp_path / "run", scenes, "spikes.max_rollbacks=2"))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["step"]) == ("failed", 15)


def test_losses_of_one_phase_are_not_compared_with_those_of_another(scenes: Path, tmp_path: Path) -> None:
    """Smaller pictures until step 10: what the first large ones lose has nothing to be compared with."""
    staged = ["stages.small={until_step: 10, image_size: 16}", "checkpoint.keep_last=9"]
    assert train(config(tmp_path / "run", scenes, *staged)) == 0
    remembered = {
        int(folder.name.removeprefix("step-")): len(
            json.loads((folder / "state.json").read_text())["progress"]["recent_losses"]
        )
        for folder in (tmp_path / "run" / "checkpoints").glob("step-*")
    }
    assert remembered == {3: 3, 6: 6, 9: 8, 10: 8, 12: 2, 15: 5, 18: 8, 20: 8}
