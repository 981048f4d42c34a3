"""When a run is saved, and what happens when the disk does not take it."""

import logging
import time

from clipx.checkpoint.store import (
    apply_retention,
    aside_folder,
    checkpoint_step,
    discard,
    list_checkpoints,
    publish,
    save_tensors,
    set_aside,
)
from clipx.config.load import dump_config
from clipx.optim.optimizers import inner_optimizer
from clipx.train.build import Run

log = logging.getLogger(__name__)


class Saver:
    """Saves one run; all ranks call it at the same steps."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.saved_step = run.progress.step
        """The step of the newest good checkpoint."""
        self._saved_at = time.monotonic()

    def is_late(self) -> bool:
        """Whether so much time has passed since the last save that rank 0 should ask for one."""
        every_s = 60 * self._run.config.checkpoint.every_minutes
        return every_s > 0 and time.monotonic() - self._saved_at > every_s

    def is_due(self) -> bool:
        """By the count of steps, and after the last one of a phase."""
        step, every = self._run.progress.step, self._run.config.checkpoint.every_steps
        return step == self._run.phase.until or (every > 0 and step % every == 0)

    def save(self, *, stopping: bool) -> None:
        """Writes a checkpoint of the current step; where that fails, nothing old is harmed and `saved_step` stays.

        While losses are not finite the weights may be the cause, so the last good checkpoint stays the newest, unless
        the run is `stopping` or its phase done, and none is removed.
        """
        run, progress = self._run, self._run.progress
        last = progress.step == run.phase.until
        if self.saved_step == progress.step or (progress.skipped_in_row and not stopping and not last):
            return
        self._saved_at = time.monotonic()
        problem = run.runtime.from_main(self._write())
        if problem is None:
            self.saved_step = progress.step
            if run.runtime.is_main and not progress.skipped_in_row:
                self._remove_old()
        elif run.runtime.is_main:
            discard(aside_folder(run.run_dir, progress.step))
            log.error(
                "CHECKPOINT OF STEP %d FAILED (%s); the next is tried when it is due; the newest good one is step %d",
                progress.step,
                problem,
                self.saved_step,
            )

    def drop_suspects(self, *, after_step: int) -> None:
        """Sets aside the checkpoints of weights that made losses non-finite, so that the next start uses older ones.

        Where none is older, they stay: they are all there is.
        """
        steps = [checkpoint_step(folder) for folder in list_checkpoints(self._run.run_dir)]
        older = [step for step in steps if step <= after_step]
        if not older:
            return
        self.saved_step = max(older)
        if self._run.runtime.is_main:
            set_aside(self._run.run_dir, after_step=after_step, reason="diverged")

    def _write(self) -> str | None:
        """What went wrong, if anything; rank 0 knows of every rank."""
        run = self._run
        aside = aside_folder(run.run_dir, run.progress.step)
        try:
            stepper = run.stepper
            average = None if stepper.ema is None else stepper.ema.state_dict()
            save_tensors(aside, stepper.model, inner_optimizer(stepper.optimizer), average=average)
            if run.runtime.is_main:
                run.state.grad_scaler = run.runtime.grad_scaler_state()
                publish(aside, run.state, dump_config(run.config))
        except OSError as error:
            return str(error)
        return None

    def _remove_old(self) -> None:
        policy = self._run.config.checkpoint
        try:
            apply_retention(self._run.run_dir, keep_last=policy.keep_last, keep_every=policy.keep_every)
        except OSError as error:
            log.warning("cannot remove an old checkpoint (%s); it stays until the next save", error)
