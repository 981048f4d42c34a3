"""When a run is saved, beside the training or in its way, and what happens when the storage does not take it."""

import logging
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

from clipx.checkpoint.background import Background
from clipx.checkpoint.host_copy import HostCopy
from clipx.checkpoint.manifest import Entry
from clipx.checkpoint.store import CheckpointStore, checkpoints_of
from clipx.checkpoint.tensors import State, own_share, state_of, write_state
from clipx.config.load import dump_config
from clipx.distributed.collectives import gather_objects, world_size
from clipx.errors import RunError
from clipx.optim.optimizers import inner_optimizer
from clipx.train.build import Run

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 60.0  # after a failure; doubled with each, until saves are due anyway
_PATIENCE_S = 120.0  # with a save that is under way when the run ends by an error
_BEHIND_S = 10.0  # a save may end so much later on one rank than on another


@dataclass(frozen=True)
class _Saved:
    """How a save ended; equal on all ranks."""

    step: int
    problem: str | None


class Saver:
    """Saves one run; all ranks call it at the same steps.

    With `checkpoint.async_save` a save takes a copy of the state and goes on in the background; `saved_step` follows
    when the next save is due, or `wait` is called. Rank 0 decides for all whether it is asked for or left out, by
    `Requests.save` in the steps' own all-reduce and by a broadcast where two saves would meet.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.store: CheckpointStore = checkpoints_of(run.config)
        self.saved_step = run.progress.step
        """The step of the newest good checkpoint that all ranks know of."""
        group = run.runtime.group
        self._group = group if world_size(group) > 1 else None
        self._host: HostCopy | None = None
        self._background: Background[_Saved] | None = None
        if run.config.checkpoint.async_save:
            self._host = HostCopy()
            self._background = Background(self._group, timeout_s=run.config.parallel.timeout_s)
        self._tried_at = time.monotonic()
        self._failures = 0
        """Saves that failed since the last good one; counted by rank 0, which decides on further tries."""
        self._missed = False
        self._lost_s = 0.0

    def is_late(self) -> bool:
        """Whether rank 0 should ask for a save: time has passed, the last one failed, was left out, or hangs."""
        policy = self._run.config.checkpoint
        if self._background is not None and not self._background.idle and not self._background.done:
            return self._is_overdue()
        if self._missed:
            return True
        waits_s = [60 * policy.every_minutes] if policy.every_minutes else []
        if self._failures:
            waits_s.append(self._retry_s())
        return bool(waits_s) and time.monotonic() - self._tried_at > min(waits_s)

    def is_due(self) -> bool:
        """By the count of steps, and after the last one of a phase."""
        step, every = self._run.progress.step, self._run.config.checkpoint.every_steps
        return step == self._run.phase.until or (every > 0 and step % every == 0)

    def save(self, *, stopping: bool) -> None:
        """Saves the current step; where that fails, nothing old is harmed and `saved_step` stays.

        Waits for the disk when saves are not asynchronous, the run is `stopping`, or its phase done. While losses are
        not finite the weights may be the cause, so the last good checkpoint stays the newest, unless the run or its
        phase ends, and none is removed.
        """
        began = time.perf_counter()
        run, progress = self._run, self._run.progress
        final = stopping or progress.step == run.phase.until
        if final or not self._is_busy():
            self.wait()
            if self.saved_step != progress.step and (final or not progress.skipped_in_row):
                self._save(began, wait=final or self._background is None)
        self._lost_s += time.perf_counter() - began

    def wait(self) -> None:
        """Lets a save in the background end; all ranks together.

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

    def take_lost_s(self) -> float:
        """Seconds of training that saves have cost this rank since the last call."""
        lost_s, self._lost_s = self._lost_s, 0.0
        return lost_s

    def drop_suspects(self, *, after_step: int) -> None:
        """Sets aside the checkpoints of weights that made losses non-finite, so that the next start uses older ones.

        Where none is older, they stay: they are all there is.
        """
        self.wait()
        steps: list[int] = []
        if self._run.runtime.is_main:
            try:
                steps = [each.step for each in self.store.checkpoints()]
                if any(step <= after_step for step in steps):
                    self.store.set_aside(after_step=after_step, reason="diverged")
            except OSError as error:
                log.error("cannot set the checkpoints after step %d aside (%s); move them yourself", after_step, error)
        older = [step for step in self._run.runtime.broadcast_from_rank0(steps) if step <= after_step]
        if older:
            self.saved_step = max(older)

    def close(self) -> None:
        """Ends a save that is under way when the run ends by an error, and gives memory and connections back."""
        if self._background is None or self._host is None:
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
        if busy and not self._missed:
            self._missed = True
            if self._run.runtime.is_main:
                log.warning(
                    "step %d is not saved: the save before it is still being written, and comes first; where that is "
                    "the rule, raise checkpoint.every_steps",
                    self._run.progress.step,
                )
        return busy

    def _is_overdue(self) -> bool:
        """Whether the save that is under way hangs; its collectives have given up, or will."""
        return time.monotonic() - self._tried_at > self._run.config.parallel.timeout_s

    def _save(self, began: float, *, wait: bool) -> None:
        """Writes, or copies and lets the background write."""
        self._tried_at, self._missed = time.monotonic(), False
        run, group = self._run, self._group if self._background is None else self._background.group
        average = None if run.stepper.ema is None else run.stepper.ema.state_dict()
        share = own_share(state_of(run.stepper.model, inner_optimizer(run.stepper.optimizer), average=average), group)
        run.state.grad_scaler = run.runtime.grad_scaler_state()
        if wait or self._background is None or self._host is None:
            self._note(self._job(share, began, lost_s=None)())
        else:
            share = self._host.take(share)
            self._background.start(self._job(share, began, lost_s=time.perf_counter() - began))

    def _job(self, share: State, began: float, *, lost_s: float | None) -> Callable[[], _Saved]:
        """The rest of a save: all ranks write, rank 0 publishes, reports and tidies up.

        Args:
            share: of the state; changes no more.
            began: time.perf_counter() at the start of the save.
            lost_s: what the training has lost by now; none: it waits until the end.
        """
        run, group = self._run, self._group if self._background is None else self._background.group
        state, tidy = deepcopy(run.state), not run.progress.skipped_in_row
        step = state.progress.step

        def job() -> _Saved:
            entries: dict[str, Entry] = {}
            problem: str | None = None
            try:
                of_ranks = gather_objects(write_state(self.store.draft(step), share, group), group)
                entries = {name: entry for of_rank in of_ranks for name, entry in of_rank.items()}
                if run.runtime.is_main:
                    self.store.publish(step, entries, state=state, config_text=dump_config(run.config))
            except OSError as error:
                problem = str(error)
            if run.runtime.is_main and problem is None:
                self._failures = 0
                self._report(step, entries, began, lost_s)
                if tidy:
                    self._remove_old()
            elif run.runtime.is_main:
                self._failures += 1
                self.store.discard(step)
                self._complain(step, problem)
            # last: ranks that left rank 0 to its tidying would wait for it in a step, where it has less time
            return _Saved(step, gather_objects(problem, group)[0])

        return job

    def _note(self, saved: _Saved) -> None:
        if saved.problem is None:
            self.saved_step = saved.step

    def _report(self, step: int, entries: Mapping[str, Entry], began: float, lost_s: float | None) -> None:
        whole_s = time.perf_counter() - began
        log.info(
            "checkpoint of step %d: %.3f GB, whole after %.2f s, %.2f s of them lost to training",
            step,
            sum(entry["size"] for entry in entries.values()) / 1e9,
            whole_s,
            whole_s if lost_s is None else lost_s,
        )

    def _complain(self, step: int, problem: str | None) -> None:
        log.error(
            "CHECKPOINT OF STEP %d FAILED (%s); the run goes on and tries again in %.0f s, or when the next is due; "
            "the newest good one is step %d",
            step,
            problem,
            self._retry_s(),
            self.saved_step,
        )

    def _retry_s(self) -> float:
        return _FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10)

    def _remove_old(self) -> None:
        policy = self._run.config.checkpoint
        try:
            self.store.apply_retention(keep_last=policy.keep_last, keep_every=policy.keep_every)
        except OSError as error:
            log.warning("cannot remove an old checkpoint (%s); it stays until the next save", error)
