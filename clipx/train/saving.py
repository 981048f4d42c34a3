"""When a run is saved, in the background or while the training waits, and what happens when the storage fails."""

import logging
import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice

from clipx.checkpoint.background import Background
from clipx.checkpoint.best import best_first, read_scores, stop_rule
from clipx.checkpoint.host_copy import HostCopy
from clipx.checkpoint.manifest import Entry, find_problem
from clipx.checkpoint.state import RunState
from clipx.checkpoint.store import CheckpointStore, checkpoints_of
from clipx.checkpoint.tensors import State, own_share, state_of, write_state
from clipx.config.load import dump_config
from clipx.distributed.collectives import gather_objects, world_size
from clipx.errors import RunError
from clipx.optim.optimizers import inner_optimizer
from clipx.storage.folders import folder_at
from clipx.train.build import Run
from clipx.train.loss_spikes import going_back

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 60.0  # after a failure; doubled with each, until saves are due anyway
_PATIENCE_S = 120.0  # with a save that is under way when the run ends by an error
_BEHIND_S = 10.0  # a save may end this much later on one rank than on another


@dataclass(frozen=True)
class _Saved:
    """How a save ended; equal on all ranks."""

    step: int
    scheduled: bool
    problem: str | None


class Saver:
    """Saves one run; all ranks call it at the same steps.

    With `checkpoint.async_save` a save takes a copy of the state and writes it in the background; `saved_step` changes
    when the next save is due or `wait` is called. Rank 0 decides for all ranks when a save is asked for or left out:
    through `StopOrSave.save` in the steps' own all-reduce, and by a broadcast when two saves would overlap.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.store: CheckpointStore = checkpoints_of(run.config)
        self.saved_step = 0 if run.branched else run.progress.step
        """The step of the newest good checkpoint that all ranks know of."""
        group = run.runtime.group
        self._group = group if world_size(group) > 1 else None
        self._stop_rule = stop_rule(run.config)
        self._host = HostCopy()
        self._background: Background[_Saved] | None = None
        if run.config.checkpoint.async_save:
            self._background = Background(self._group, timeout_s=run.config.parallel.timeout_s)
            self._group = self._background.group
        self._tried_at = time.monotonic()
        self._failures = 0
        """Saves that failed since the last good one; counted by rank 0, which decides when to try again."""
        self._left_out = False
        """Whether a save was left out since the last one began, because one was still being written."""
        self._owed = False
        """Whether the schedule's last save failed or was left out, so that the next one stands for it."""
        self._pause_s = 0.0

    def is_late(self) -> bool:
        """Whether rank 0 should ask for a save.

        It should when the time has come, when the last save failed or was left out, or when the one under way hangs.
        """
        policy = self._run.config.checkpoint
        if self._background is not None and not self._background.idle and not self._background.done:
            return self._is_overdue()
        if self._left_out:
            return True
        waits_s = (60 * policy.every_minutes, self._retry_s() if self._failures else 0.0)
        return time.monotonic() - self._tried_at > min((wait_s for wait_s in waits_s if wait_s), default=math.inf)

    def is_due(self) -> bool:
        """Whether the count of steps asks for a save: by `checkpoint.every_steps`, or at the end of a phase."""
        step, every = self._run.progress.step, self._run.config.checkpoint.every_steps
        return step == self._run.phase.until or (every > 0 and step % every == 0)

    def save(self, *, stopping: bool, is_best: bool = False) -> None:
        """Saves the current step. A save that fails harms nothing that was saved before, and `saved_step` stays.

        Waits for the disk when saves are not asynchronous, when the run is `stopping`, and at the end of a phase. While
        losses are not finite, the weights may be the cause. So nothing is saved then unless the run or its phase ends
        or the step `is_best`, whose figures say that its weights are good, and no old checkpoint is removed. With
        `spikes` a save of the schedule is never left out but waits for the one before, and so does that of a step that
        `is_best`: a rollback, and the best checkpoint, must not depend on the speed of the storage.

        Raises:
            RunError: from `wait`.
        """
        began = time.perf_counter()
        run, progress = self._run, self._run.progress
        final = stopping or progress.step == run.phase.until
        if final or is_best or (run.config.spikes is not None and self.is_due()) or not self._is_busy():
            self.wait()
            if self.saved_step != progress.step and (final or is_best or not progress.skipped_in_row):
                self._save(began, wait=final)
        self._pause_s += time.perf_counter() - began

    def wait(self) -> None:
        """Waits for the save in the background to end; all ranks call this together.

        Raises:
            RunError: it has taken longer than `parallel.timeout_s`: what hangs in the storage is not tried again.
        """
        if self._background is None or self._background.idle:
            return
        limit_s = self._run.config.parallel.timeout_s
        try:
            self._note(self._background.take(max(self._tried_at + limit_s - time.monotonic(), _BEHIND_S)))
        except TimeoutError as error:
            raise RunError(
                f"a checkpoint has not been written within parallel.timeout_s={limit_s}; the newest good one is step "
                f"{self.saved_step}: see that {self.store} answers, then start again"
            ) from error

    def pop_pause_seconds(self) -> float:
        """Seconds for which saves have paused the training on this rank since the last call."""
        pause_s, self._pause_s = self._pause_s, 0.0
        return pause_s

    def drop_suspects(self, *, after_step: int) -> None:
        """Sets aside the checkpoints of weights that made losses non-finite, so that the next start uses older ones.

        If none is older, they stay: they are all there is.
        """
        self.wait()
        steps: list[int] = []
        if self._run.runtime.is_main:
            try:
                steps = [checkpoint.step for checkpoint in self.store.checkpoints()]
                if any(step <= after_step for step in steps):
                    self.store.set_aside(after_step=after_step, reason="diverged")
            except OSError as error:
                log.error("cannot set the checkpoints after step %d aside (%s); move them yourself", after_step, error)
        older = [step for step in self._run.runtime.broadcast_from_rank0(steps) if step <= after_step]
        if older:
            self.saved_step = max(older)

    def close(self) -> None:
        """Lets a save end that is under way when the run ends by an error; frees memory and connections."""
        if self._background is None:
            return
        if not self._background.idle:
            try:
                self._background.take(_BEHIND_S if self._is_overdue() else _PATIENCE_S)
            except Exception as error:
                log.error("the checkpoint that was being written is lost (%s)", str(error) or type(error).__name__)
                return
        self._background.close()
        self._host.close()

    def _is_busy(self) -> bool:
        """Whether a save is under way, so that this one is left out; rank 0 decides."""
        if self._background is None or self._background.idle:
            return False
        busy = self._run.runtime.broadcast_from_rank0(not self._background.done and not self._is_overdue())
        self._owed |= busy and self._is_scheduled()
        if busy and not self._left_out:
            self._left_out = True
            if self._run.runtime.is_main:
                log.warning(
                    "step %d is not saved: the save before it is still being written, and comes first; where that is "
                    "the rule, raise checkpoint.every_steps",
                    self._run.progress.step,
                )
        return busy

    def _is_scheduled(self) -> bool:
        """Whether a run that nothing disturbs would save this step too, or has nothing but such saves."""
        progress = self._run.progress
        saves = progress.step == self._run.phase.until or not progress.skipped_in_row
        return (self.is_due() and saves) or self._owed or not self._run.config.checkpoint.every_steps

    def _is_overdue(self) -> bool:
        """Whether the save under way hangs; its collectives have given up, or will."""
        return time.monotonic() - self._tried_at > self._run.config.parallel.timeout_s

    def _save(self, began: float, *, wait: bool) -> None:
        """Writes (with `wait` even if saves are asynchronous), or copies the state and writes in the background."""
        self._tried_at, self._left_out = time.monotonic(), False
        run = self._run
        average = None if run.stepper.ema is None else run.stepper.ema.state_dict()
        full_state = state_of(run.stepper.model, inner_optimizer(run.stepper.optimizer), average=average)
        share = own_share(full_state, self._group)
        run.state.grad_scaler = run.runtime.grad_scaler_state()
        run.state.scheduled, self._owed = self._is_scheduled(), False
        state = deepcopy(run.state)
        if wait or self._background is None:
            self._note(self._write(share, state, began))
        else:
            share = self._host.take(share)
            self._background.start(partial(self._write, share, state, began, pause_s=time.perf_counter() - began))

    def _write(self, share: State, state: RunState, began: float, *, pause_s: float | None = None) -> _Saved:
        """The part of a save that may run in the background: all ranks write, rank 0 publishes, reports and tidies up.

        Neither share nor state may change any more. The training paused for `pause_s`; None: it waits for this to end.
        """
        step, entries = state.progress.step, dict[str, Entry]()
        problem = self._begin(step)
        try:
            if problem is None:
                for written in gather_objects(write_state(self.store.draft(step), share, self._group), self._group):
                    entries |= written
            if problem is None and self._run.runtime.is_main:
                self.store.publish(step, entries, state=state, config_text=dump_config(self._run.config))
        except OSError as error:
            problem = str(error)
        if self._run.runtime.is_main and problem is None:
            self._failures = 0
            self._report(step, entries, began, pause_s)
            if not state.progress.skipped_in_row:
                self._remove_old(step)
        elif self._run.runtime.is_main:
            self._failures += 1
            self.store.discard(step)
            log.error(
                "CHECKPOINT OF STEP %d FAILED (%s); the run goes on and tries again in %.0f s, or when the next is "
                "due; the newest good one is step %d",
                step,
                problem,
                self._retry_s(),
                self.saved_step,
            )
        # last: otherwise the other ranks would wait in a step for rank 0's tidying, where they have less time
        return _Saved(step, state.scheduled, gather_objects(problem, self._group)[0])

    def _begin(self, step: int) -> str | None:
        """Rank 0 marks the draft; what was in the way, on all ranks."""
        problem = None
        if self._run.runtime.is_main:
            try:
                self.store.begin(step)
            except OSError as error:
                problem = str(error)
        return gather_objects(problem, self._group)[0]

    def _note(self, saved: _Saved) -> None:
        if saved.problem is None:
            self.saved_step = saved.step
        else:
            self._owed |= saved.scheduled

    def _report(self, step: int, entries: Mapping[str, Entry], began: float, pause_s: float | None) -> None:
        total_s = time.perf_counter() - began
        log.info(
            "checkpoint of step %d: %.3f GB, whole after %.2f s, %.2f s of them lost to training",
            step,
            sum(entry["size"] for entry in entries.values()) / 1e9,
            total_s,
            total_s if pause_s is None else pause_s,
        )

    def _retry_s(self) -> float:
        return _FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10)

    def _best(self) -> list[int]:
        """The step of the best checkpoint that is there, by the evaluations so far; none without `stop`."""
        if self._stop_rule is None:
            return []
        ranked = best_first(read_scores(folder_at(self._run.run_dir), self._stop_rule), self._stop_rule)
        there = {checkpoint.step: checkpoint.folder for checkpoint in self.store.checkpoints()}
        good = (step for step in ranked if step in there and find_problem(there[step], checksums=False) is None)
        return list(islice(good, 1))

    def _remove_old(self, step: int) -> None:
        config = self._run.config
        policy = config.checkpoint
        try:
            needed = going_back(self.store, config, step + 1) + self._best()
            self.store.apply_retention(keep_last=policy.keep_last, keep_every=policy.keep_every, keep=needed)
        except OSError as error:
            log.warning("cannot remove an old checkpoint (%s); it stays until the next save", error)
