"""Leaps of the loss: back to the last checkpoint from before, and on without the batches that came with the leap.

Which loss is a leap is decided in `spikes.py`, from numbers that are the same on all ranks and in every start; so a
run that is killed on its way back leaps and goes back again when it is started, and nothing needs to be remembered.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clipx.checkpoint.state import Progress
from clipx.checkpoint.store import checkpoints_of
from clipx.config.schema import RunConfig
from clipx.distributed.runtime import Runtime
from clipx.errors import RunError
from clipx.train.metrics.json_lines import append_rows, read_rows

log = logging.getLogger(__name__)


class LossLeapError(Exception):
    """A loss far above those before it; ends the steps on all ranks alike, and the run goes back."""

    def __init__(self, *, step: int, batch: int, loss: float, z_score: float) -> None:
        super().__init__(f"the loss leapt to {loss:.4f} at step {step}, {z_score:.1f} deviations above the median")
        self.step, self.batch, self.loss, self.z_score = step, batch, loss, z_score


@dataclass(frozen=True)
class Detour:
    """What a run that goes back knows, and the checkpoint that it goes back to does not."""

    left_out: tuple[int, ...]
    """Global batches, ascending."""
    rollbacks: int

    def take(self, progress: Progress) -> None:
        """Changes the progress of the checkpoint."""
        progress.left_out = sorted({*progress.left_out, *self.left_out})
        progress.rollbacks = self.rollbacks
        progress.go_to(progress.next_batch)


@dataclass(frozen=True)
class _Row:
    """A line of rollbacks.jsonl."""

    step: int
    loss: float
    z_score: float
    back_to: int
    left_out: list[int]


def go_back(leap: LossLeapError, progress: Progress, *, config: RunConfig, runtime: Runtime) -> Detour:
    """Sets the checkpoints aside that the leap may have spoilt, so that the run is built from the one before.

    Args:
        leap: what happened.
        progress: of the run when it did.
        config: of the run; how much to leave out, and how often to go back. Rank 0 adds to run_dir/rollbacks.jsonl.
        runtime: the ranks; all of them call this.

    Returns:
        What the run is to be built with.

    Raises:
        RunError: it has gone back too often, or the storage failed; on all ranks alike.
    """
    run_dir, spikes, store = Path(config.run_dir), config.spikes, checkpoints_of(config)
    assert spikes is not None
    if progress.rollbacks >= spikes.max_rollbacks:
        raise RunError(
            f"{leap}, after {progress.rollbacks} rollbacks (spikes.max_rollbacks); see {run_dir / 'rollbacks.jsonl'}, "
            "lower optim.lr or look at the data, then start again"
        )
    back_to = 0
    with runtime.raise_on_all_ranks():
        if runtime.is_main:
            try:
                steps = [checkpoint.step for checkpoint in store.checkpoints()]
                back_to = last_before(leap.step, steps, leave_out=spikes.leave_out)
                store.set_aside(after_step=back_to, reason="leapt")
            except OSError as error:
                raise RunError(
                    f"{leap}, and the checkpoints in {store} cannot be set aside ({error}); mend the storage, then "
                    "run the same command again"
                ) from error
    back_to = runtime.broadcast_from_rank0(back_to)
    batches = batches_before(leap.batch, min(spikes.leave_out, leap.step - back_to), left_out=progress.left_out)
    if runtime.is_main:
        row = asdict(_Row(leap.step, leap.loss, leap.z_score, back_to, list(batches)))
        log.warning("%s; BACK TO STEP %d, without the global batches %d to %d", leap, back_to, batches[0], batches[-1])
        path = run_dir / "rollbacks.jsonl"
        if row not in read_rows(path):  # as a run that was killed meanwhile finds it
            append_rows(path, [row])
    return Detour(tuple(sorted({*progress.left_out, *batches})), progress.rollbacks + 1)


def last_before(step: int, saved: Sequence[int], *, leave_out: int) -> int:
    """The newest of the saved steps from before the last `leave_out` ones, else the newest before `step`, else 0."""
    before = [each for each in saved if each < step]
    return max([each for each in before if each <= step - leave_out] or before or [0])


def batches_before(batch: int, count: int, *, left_out: Sequence[int]) -> tuple[int, ...]:
    """The `count` global batches up to and with `batch` that were trained on, ascending."""
    found: list[int] = []
    while len(found) < count and batch >= 0:
        if batch not in left_out:
            found.append(batch)
        batch -= 1
    return tuple(reversed(found))
