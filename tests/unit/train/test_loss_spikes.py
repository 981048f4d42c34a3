"""Where a run goes back to after a leap of the loss, and which batches it leaves out from then on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_config

from clipx.checkpoint.state import Progress
from clipx.config.checkpoint import SpikeConfig
from clipx.distributed.runtime import start_runtime
from clipx.errors import RunError
from clipx.train.loss_spikes import Detour, LossLeapError, batches_before, go_back, last_before

LEAP = LossLeapError(step=30, batch=31, loss=9.0, z_score=12.0)


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ([10, 20, 22], 22),
        ([10, 20, 23, 29], 20),  # 23 and 29 lie among the last 8 steps
        ([25, 28], 28),  # nothing older is left: the newest before the leap
        ([30, 40], 0),
        ([], 0),
    ],
)
def test_goes_back_behind_what_is_left_out(saved: list[int], expected: int) -> None:
    assert last_before(30, saved, leave_out=8) == expected


def test_batches_that_were_left_out_before_do_not_count_again() -> None:
    assert batches_before(31, 4, left_out=[29, 30]) == (26, 27, 28, 31)
    assert batches_before(1, 8, left_out=[]) == (0, 1)


def test_the_next_batch_is_one_that_is_trained_on() -> None:
    progress = Progress(step=20, next_batch=21, left_out=[5])
    Detour((5, 21, 22), rollbacks=2).take(progress)
    assert (progress.next_batch, progress.left_out, progress.rollbacks) == (23, [5, 21, 22], 2)
    progress.go_to(24)
    assert progress.next_batch == 24


def back(run_dir: Path, progress: Progress, **changes: int) -> Detour:
    config = replace(tiny_config(run_dir, "none.tar"), spikes=SpikeConfig(**changes))
    with start_runtime(config) as runtime:
        return go_back(LEAP, progress, config=config, runtime=runtime)


def test_spoilt_checkpoints_are_set_aside_and_the_record_is_written_once(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step in (10, 20, 28):
        (checkpoints / f"step-{step:08d}").mkdir(parents=True)
    progress = Progress(step=31, next_batch=33, left_out=[3], rollbacks=1)
    for _ in range(2):  # as a run that is killed on its way back does it
        assert back(tmp_path, progress) == Detour((3, *range(24, 32)), rollbacks=2)
        assert sorted(path.name for path in checkpoints.iterdir()) == [
            "leapt-step-00000028",
            "step-00000010",
            "step-00000020",
        ]
    (row,) = map(json.loads, (tmp_path / "rollbacks.jsonl").read_text().splitlines())
    assert row == {"step": 30, "loss": 9.0, "z_score": 12.0, "back_to": 20, "left_out": list(range(24, 32))}


def test_it_does_not_go_back_for_ever(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"leapt to 9.0000 at step 30, .* after 3 rollbacks \(spikes.max_rollbacks\)"):
        back(tmp_path, Progress(rollbacks=3), max_rollbacks=3)
