"""Loss spikes: how one is found, and the rollback to an earlier checkpoint, without the batches that came with it.

The detector is a pure function of the losses before, which are the same on all ranks and in every start. So a run that
is killed during a rollback finds the same spike and rolls back again when it is started; nothing has to be remembered.
And it goes back to a checkpoint of the schedule (`checkpoint.every_steps`, ends of phases): those of stops and of
`every_minutes` lie elsewhere in every start, and would make the run another one.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from clipx.checkpoint.state import Progress
from clipx.checkpoint.store import CheckpointStore, checkpoints_of
from clipx.config.checkpoint import SpikeConfig
from clipx.config.schema import JobConfig
from clipx.distributed.runtime import Runtime
from clipx.errors import RunError
from clipx.storage.json_rows import read_rows
from clipx.train.metrics.json_lines import JsonLines

log = logging.getLogger(__name__)

_SIGMA_PER_MAD = 1.4826  # for a normal distribution: 1 / its 75% quantile
# On a plateau the deviation goes to zero, and the smallest rise would be many deviations. So a deviation counts as at
# least 1% of the median, since losses differ in scale: at the default z_score of 8, a spike is a rise by 8% or more.
# Near zero, where losses differ by rounding, it counts as 1% of 0.1.
_MIN_SIGMA = 0.01
_MIN_MEDIAN = 0.1


class SpikeDetector:
    """Compares each loss with the latest ones. A slow rise is no spike, because the window rises with it.

    Args:
        config: what counts as a spike.
        recent: the latest losses that were no spikes, oldest first: all the state of the detector. Updated in place,
            so that the owner can save it.
    """

    def __init__(self, config: SpikeConfig, recent: list[float]) -> None:
        self._config = config
        self._recent = recent
        del recent[: -config.window]

    def look(self, loss: float) -> float | None:
        """Checks one loss and, unless it is a spike or not finite, adds it to the latest ones.

        Returns:
            Robust standard deviations (from the median absolute deviation) by which the loss exceeds the median of
            the window, if that makes it a spike, else None.
        """
        if not math.isfinite(loss):
            return None
        if len(self._recent) == self._config.window:
            median = float(np.median(self._recent))
            deviation = float(np.median(np.abs(np.subtract(self._recent, median))))
            z_score = (loss - median) / max(_SIGMA_PER_MAD * deviation, _MIN_SIGMA * max(median, _MIN_MEDIAN))
            if z_score > self._config.z_score:
                return z_score
        self._recent.append(loss)
        del self._recent[: -self._config.window]
        return None

    def reset(self) -> None:
        """Forgets the losses: those of another phase have another level."""
        self._recent.clear()


class LossSpikeError(Exception):
    """Ends the steps on all ranks alike when the loss spiked; the run then rolls back."""

    def __init__(self, *, step: int, batch: int, loss: float, z_score: float) -> None:
        super().__init__(f"the loss spiked to {loss:.4f} at step {step}, {z_score:.1f} deviations above the median")
        self.step, self.batch, self.loss, self.z_score = step, batch, loss, z_score


@dataclass(frozen=True)
class Rollback:
    """The part of a run's progress after a rollback that the checkpoint it goes on from does not have."""

    skipped_batches: tuple[int, ...]
    """Numbers of global batches in the data order, ascending."""
    rollbacks: int
    """How many there have been, with this one."""

    def apply(self, progress: Progress) -> None:
        """Changes the progress that was read from the checkpoint."""
        progress.skipped_batches = sorted({*progress.skipped_batches, *self.skipped_batches})
        progress.rollbacks = self.rollbacks
        progress.go_to(progress.next_batch)


def rollback(spike: LossSpikeError, progress: Progress, *, config: JobConfig, runtime: Runtime) -> Rollback:
    """Sets aside the checkpoints that the spike may have spoilt, so that the run is built from an earlier one.

    All ranks call this; rank 0 adds a row to run_dir/rollbacks.jsonl.

    Returns:
        What the run has to be built with.

    Raises:
        RunError: there were too many rollbacks, or the storage failed; on all ranks alike.
    """
    run_dir, spikes = Path(config.run_dir), config.spikes
    assert spikes is not None
    if progress.rollbacks >= spikes.max_rollbacks:
        raise RunError(
            f"{spike}, after {progress.rollbacks} rollbacks (spikes.max_rollbacks); see {run_dir / 'rollbacks.jsonl'}, "
            "lower optim.lr or look at the data, then start again"
        )
    back_to = _set_aside_spoilt(spike, config=config, runtime=runtime)
    count = min(spikes.leave_out, spike.step - back_to)
    batches = batches_before(spike.batch, count, skipped=progress.skipped_batches)
    if runtime.is_main:
        log.warning("%s; BACK TO STEP %d, without the global batches %d to %d", spike, back_to, batches[0], batches[-1])
        scores = {"step": spike.step, "loss": spike.loss, "z_score": spike.z_score}
        row = {**scores, "back_to": back_to, "left_out": list(batches)}
        path = run_dir / "rollbacks.jsonl"
        if row not in read_rows(path):  # the row is there if the run was killed during this rollback
            JsonLines(path).append([row])
    return Rollback(tuple(sorted({*progress.skipped_batches, *batches})), progress.rollbacks + 1)


def _set_aside_spoilt(spike: LossSpikeError, *, config: JobConfig, runtime: Runtime) -> int:
    """Renames the checkpoints that the spike may have spoilt; returns the step of the newest one left, 0 if none."""
    assert config.spikes is not None
    store, back_to, skipping = checkpoints_of(config), 0, config.spikes.leave_out
    with runtime.raise_on_all_ranks():
        if runtime.is_main:
            try:
                saved = going_back(store, config, spike.step)
                if not saved and spike.step > config.checkpoint.every_steps:  # gone before the config had `spikes`
                    saved = [checkpoint.step for checkpoint in store.checkpoints()]
                back_to = last_before(spike.step, saved, skipping=skipping)
                store.set_aside(after_step=back_to, reason="leapt")
            except OSError as error:
                raise RunError(
                    f"{spike}, and the checkpoints in {store} cannot be set aside ({error}); mend the storage, then "
                    "run the same command again"
                ) from error
    return runtime.broadcast_from_rank0(back_to)


def going_back(store: CheckpointStore, config: JobConfig, step: int) -> list[int]:
    """The saved steps that a spike at `step` chooses from, which retention keeps; none without `spikes`.

    Raises:
        OSError: the storage did not answer.
    """
    if config.spikes is None:
        return []
    policy = config.checkpoint
    return store.scheduled_before(
        step, skipping=config.spikes.leave_out, keep_last=policy.keep_last, keep_every=policy.keep_every
    )


def last_before(step: int, saved: Sequence[int], *, skipping: int) -> int:
    """The newest saved step that is at least `skipping` steps before `step`; else the newest before it; else 0."""
    before = [number for number in saved if number < step]
    return max([number for number in before if number <= step - skipping] or before or [0])


def batches_before(batch: int, count: int, *, skipped: Sequence[int]) -> tuple[int, ...]:
    """The last `count` global batches up to and including `batch` that were not skipped before, ascending."""
    trained = (number for number in range(batch, -1, -1) if number not in skipped)
    return tuple(islice(trained, count))[::-1]
