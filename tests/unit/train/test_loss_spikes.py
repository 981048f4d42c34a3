"""What is a loss spike and what is none; where a run rolls back to after one, and which batches it skips."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config

from clipx.checkpoint.state import DataOrderRecord, Progress, RunState
from clipx.checkpoint.store import CheckpointStore
from clipx.config.checkpoint import SpikeConfig
from clipx.distributed.runtime import start_runtime
from clipx.errors import RunError
from clipx.train.loss_spikes import LossSpikeError, Rollback, SpikeDetector, batches_before, last_before, rollback

SPIKE = LossSpikeError(step=30, batch=31, loss=9.0, z_score=12.0)
CONFIG = SpikeConfig(window=64)
STEPS = np.arange(2000)


def spikes(losses: np.ndarray, recent: list[float] | None = None) -> list[int]:
    """The steps at which the loss spikes."""
    detector = SpikeDetector(CONFIG, [] if recent is None else recent)
    return [step for step, loss in enumerate(losses) if detector.look(float(loss)) is not None]


def learning(noise: float, *, seed: int = 0) -> np.ndarray:
    """A loss that falls from 8.3 towards 1, with relative noise."""
    return (1 + 7.3 * np.exp(-STEPS / 400)) * (1 + noise * np.random.default_rng(seed).standard_normal(STEPS.size))


@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.01, 0.05])
@pytest.mark.parametrize("seed", [0, 1])
def test_learning_is_no_spike(noise: float, seed: int) -> None:
    assert spikes(learning(noise, seed=seed)) == []


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_a_spike_is_found_at_its_step_and_forgotten(noise: float) -> None:
    losses = learning(noise)
    losses[[1000, 1001, 1500]] *= 2
    assert spikes(losses) == [1000, 1001, 1500]


def test_a_slow_rise_is_no_spike() -> None:
    assert spikes(2 + STEPS / 300) == []  # by a factor of 4 in all, and far beyond the deviation within a window


def test_a_fall_is_no_spike() -> None:
    assert spikes(np.append(np.full(64, 4.0), 1.0)) == []


def test_a_plateau_is_no_spike_until_the_loss_rises_by_8_percent() -> None:
    flat = np.full(200, 4.0)
    assert spikes(np.append(flat, 4.0 * 1.079)) == []
    assert spikes(np.append(flat, 4.0 * 1.081)) == [200]


def test_rounding_near_zero_is_no_spike() -> None:
    flat = np.zeros(200)
    assert spikes(np.append(flat, 0.0079)) == []
    assert spikes(np.append(flat, 0.0081)) == [200]


def test_nothing_spikes_before_the_window_is_full() -> None:
    assert spikes(np.append(np.ones(63), 100.0)) == []
    assert spikes(np.append(np.ones(64), 100.0)) == [64]


def test_the_score_counts_robust_standard_deviations() -> None:
    losses = np.random.default_rng(0).normal(5.0, 0.5, 4096).tolist()
    score = SpikeDetector(SpikeConfig(window=4096), losses).look(10.0)
    assert score == pytest.approx(10, rel=0.05)


def test_losses_that_are_not_finite_are_neither_spikes_nor_remembered() -> None:
    recent = [1.0] * 64
    detector = SpikeDetector(CONFIG, recent)
    assert [detector.look(loss) for loss in (math.nan, math.inf, -math.inf)] == [None] * 3
    assert recent == [1.0] * 64


def test_what_is_remembered_is_all_the_state() -> None:
    losses = learning(0.02)
    losses[1900] *= 3
    recent: list[float] = []
    spikes(losses[:1000], recent)
    assert recent == losses[1000 - 64 : 1000].tolist()
    assert [1000 + step for step in spikes(losses[1000:], list(recent))] == spikes(losses) == [1900]


def test_a_smaller_window_keeps_the_latest() -> None:
    recent = [float(number) for number in range(100)]
    SpikeDetector(CONFIG, recent)
    assert recent == [float(number) for number in range(36, 100)]


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ([10, 20, 22], 22),
        ([10, 20, 23, 29], 20),  # 23 and 29 lie among the last 8 steps
        ([25, 28], 28),  # nothing older is left: the newest before the spike
        ([30, 40], 0),
        ([], 0),
    ],
)
def test_rolls_back_to_before_the_skipped_batches(saved: list[int], expected: int) -> None:
    assert last_before(30, saved, skipping=8) == expected


def test_batches_that_were_skipped_before_do_not_count_again() -> None:
    assert batches_before(31, 4, skipped=[29, 30]) == (26, 27, 28, 31)
    assert batches_before(1, 8, skipped=[]) == (0, 1)


def test_the_next_batch_is_one_that_is_trained_on() -> None:
    progress = Progress(step=20, next_batch=21, skipped_batches=[5])
    Rollback((5, 21, 22), rollbacks=2).apply(progress)
    assert (progress.next_batch, progress.skipped_batches, progress.rollbacks) == (23, [5, 21, 22], 2)
    progress.go_to(24)
    assert progress.next_batch == 24


def save(folder: Path, step: int, *, scheduled: bool = True) -> None:
    order = DataOrderRecord(
        fingerprint="f", num_shards=1, num_samples=9, lanes=4, shuffle_window=64, global_batch_size=8, seed=0
    )
    state = RunState(progress=Progress(step=step), data_order=order, wandb_id="w", scheduled=scheduled)
    store = CheckpointStore(folder)
    store.draft(step).make()
    store.publish(step, {}, state=state, config_text="run_dir: r\n")


def rolled_back(run_dir: Path, progress: Progress, *, every_steps: int = 10, **changes: int) -> Rollback:
    config = tiny_config(run_dir, "none.tar", f"checkpoint.every_steps={every_steps}")
    config = replace(config, spikes=SpikeConfig(**changes))
    with start_runtime(config) as runtime:
        return rollback(SPIKE, progress, config=config, runtime=runtime)


def test_spoilt_checkpoints_are_set_aside_and_the_record_is_written_once(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step in (10, 20, 28):
        save(checkpoints, step)
    progress = Progress(step=31, next_batch=33, skipped_batches=[3], rollbacks=1)
    for _ in range(2):  # as a run that is killed during a rollback does it
        assert rolled_back(tmp_path, progress) == Rollback((3, *range(24, 32)), rollbacks=2)
        assert sorted(path.name for path in checkpoints.iterdir()) == [
            "leapt-step-00000028",
            "step-00000010",
            "step-00000020",
        ]
    (row,) = map(json.loads, (tmp_path / "rollbacks.jsonl").read_text().splitlines())
    assert row == {"step": 30, "loss": 9.0, "z_score": 12.0, "back_to": 20, "left_out": list(range(24, 32))}


@pytest.mark.parametrize(
    ("saved", "stopped", "keep", "expected"),
    [
        ([10, 20], [21, 25], {}, [20]),
        ([10, 20, 28], [22], {}, [28, 20]),  # 28 lies among the last 8 steps
        ([10, 20, 28], [22], {"keep_last": 1}, [28]),  # alone left, had nothing been stopped
        ([10, 20, 28], [22], {"keep_last": 1, "keep_every": 10}, [28, 20]),
        ([30, 40], [22], {}, []),
        ([], [22], {}, []),
    ],
)
def test_goes_back_to_what_the_schedule_alone_would_have(
    tmp_path: Path, saved: list[int], stopped: list[int], keep: dict[str, int], expected: list[int]
) -> None:
    for step in (*saved, *stopped):
        save(tmp_path, step, scheduled=step in saved)
    (tmp_path / "step-00000029").mkdir()  # a broken one
    policy = {"keep_last": 3, "keep_every": 0, **keep}
    assert CheckpointStore(tmp_path).scheduled_before(30, skipping=8, **policy) == expected


def test_where_the_schedule_has_nothing_left_it_goes_back_to_what_there_is(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 22, scheduled=False)
    progress = Progress(step=31, next_batch=33)
    assert rolled_back(tmp_path, progress, every_steps=20) == Rollback(tuple(range(24, 32)), rollbacks=1)
    assert rolled_back(tmp_path, progress, every_steps=40) == Rollback(tuple(range(24, 32)), rollbacks=1)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["leapt-step-00000022"]


def test_it_does_not_roll_back_for_ever(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"spiked to 9.0000 at step 30, .* after 3 rollbacks \(spikes.max_rollbacks\)"):
        rolled_back(tmp_path, Progress(rollbacks=3), max_rollbacks=3)
