"""The training loop. `train` is what `clipx train` calls: it starts, resumes, or reports that the run is complete."""

import json
import logging
import math
import time
from collections.abc import Generator
from contextlib import closing, suppress
from enum import Enum
from pathlib import Path

import torch

from clipx.checkpoint.store import (
    apply_retention,
    aside_folder,
    discard,
    discard_unfinished,
    publish,
    save_tensors,
    write_atomically,
)
from clipx.config.load import dump_config
from clipx.config.schema import EvaluateConfig, RunConfig
from clipx.distributed.collectives import gather_objects
from clipx.distributed.runtime import start_runtime
from clipx.errors import ClipxError, InputError, RunError
from clipx.evaluate.run import run_evaluation
from clipx.optim.optimizers import inner_optimizer
from clipx.train.build import Run, build_run, open_trackers
from clipx.train.signals import StopRequest, catch_stop_signals
from clipx.train.step import PendingStep, Requests, StepOutcome
from clipx.types import Batch

log = logging.getLogger(__name__)


class Status(Enum):
    """How a start of a run ended: the word in status.json and the exit code."""

    COMPLETE = ("complete", 0)
    AGAIN = ("again", 85)
    FAILED = ("failed", 1)

    @property
    def word(self) -> str:
        """As in status.json."""
        return self.value[0]

    @property
    def exit_code(self) -> int:
        """For schedulers; torchrun and accelerate launch turn 85 into 1, so launch files read status.json."""
        return self.value[1]


def train(config: RunConfig) -> int:
    """Runs a config to its end or to a stop; returns the exit code.

    Raises:
        ClipxError: the run cannot start or go on; status.json says `failed` and why, unless the run never began.
    """
    with catch_stop_signals() as stop, start_runtime(config) as runtime:
        logging.basicConfig(level=logging.INFO if runtime.is_main else logging.ERROR, format="%(message)s")
        run = build_run(config, runtime)
        try:
            status = Loop(run, stop).fit()
        except Exception as error:
            known = _known_failure(error)
            _write_failure(run, known or error)
            if known is None:
                raise
            raise known from error
        runtime.barrier()
        if runtime.is_main:
            _write_status(run.run_dir, status, run.progress.step, stop.reason or "all steps done")
            log.info("%s at step %d: %s", status.word, run.progress.step, run.run_dir)
        runtime.accelerator.end_training()
    return status.exit_code


class Loop:
    """One start of a run: the steps, and what happens between them."""

    def __init__(self, run: Run, stop: StopRequest) -> None:
        self.run = run
        self.stop = stop
        self.pending: PendingStep | None = None
        self.saved_step = run.progress.step
        self.saved_at = time.monotonic()

    def fit(self) -> Status:
        """Trains to the last step or to a stop that all ranks agreed on."""
        run, progress = self.run, self.run.progress
        if progress.step == run.config.num_steps and not self.missing_evaluations():
            return Status.COMPLETE
        if run.runtime.is_main:
            discard_unfinished(run.run_dir)
            (run.run_dir / "status.json").unlink(missing_ok=True)
        open_trackers(run)
        run.monitor.rewind(progress.step)
        with run.monitor, closing(run.batches()) as batches:
            self.evaluate_if_due()  # what a kill between a save and its evaluation left undone
            while progress.step < run.config.num_steps:
                orders = self.advance(self.next_batch(batches))
                if orders.stop or orders.save or self.save_is_due():
                    self.save(wanted=orders.stop)
                if orders.stop and progress.step < run.config.num_steps:
                    return Status.AGAIN
                self.evaluate_if_due()
            if self.saved_step != progress.step and not self.save():
                raise RunError(f"the last checkpoint of {run.run_dir} could not be written; free space and start again")
        return Status.COMPLETE

    def next_batch(self, batches: Generator[Batch]) -> Batch:
        """This rank's next batch on its device."""
        began = time.perf_counter()
        batch = next(batches)
        self.run.monitor.waited(time.perf_counter() - began)
        return batch.to(self.run.runtime.device)

    def advance(self, batch: Batch) -> Requests:
        """Launches one step, then reads the one before; returns what all ranks were asked for in that one."""
        run, progress = self.run, self.run.progress
        launched = run.stepper(batch, step=progress.step, requests=self.requests())
        progress.step += 1
        progress.next_batch += 1
        progress.samples_seen += run.config.global_batch_size
        outcome = self.settle()
        self.pending = launched
        return Requests() if outcome is None else Requests(stop=outcome.stop, save=outcome.save)

    def requests(self) -> Requests:
        """What this rank asks for: the stop it was signalled, and on rank 0 the save by the clock."""
        every_s = 60 * self.run.config.checkpoint.every_minutes
        late = every_s > 0 and time.monotonic() - self.saved_at > every_s
        return Requests(stop=bool(self.stop), save=late and self.run.runtime.is_main)

    def settle(self) -> StepOutcome | None:
        """Reads the step that is still pending, if any: counts, records, and ends a run that cannot go on.

        Raises:
            RunError: too many bad steps in a row, or too many bad samples; on all ranks alike.
        """
        if self.pending is None:
            return None
        outcome, self.pending = self.pending.read(), None
        run, progress = self.run, self.run.progress
        self._count(outcome)
        if outcome.num_bad:
            gathered = gather_objects(outcome.bad_here, run.runtime.group)
            everyones = [sample for of_rank in gathered for sample in of_rank]
            run.quarantine.add(everyones, step=outcome.step, write=run.runtime.is_main)
        run.monitor.record(outcome, progress, bad_samples=len(run.quarantine))
        run.quarantine.check(
            samples_seen=outcome.step * run.config.global_batch_size,
            num_samples=run.state.plan.num_samples,
            max_bad_fraction=run.config.data.max_bad_fraction,
        )
        self._check_skipped(outcome)
        return outcome

    def _count(self, outcome: StepOutcome) -> None:
        progress = self.run.progress
        if outcome.good:
            progress.skipped_in_row = 0
        elif self.run.config.precision == "fp16" and math.isfinite(outcome.loss):
            progress.overflow_steps += 1
        else:
            progress.skipped_steps += 1
            progress.skipped_in_row += 1

    def _check_skipped(self, outcome: StepOutcome) -> None:
        limit = self.run.config.max_skipped_steps
        if self.run.progress.skipped_in_row >= limit:
            raise RunError(
                f"loss or gradient was not finite in {limit} steps in a row, up to step {outcome.step} "
                f"(loss {outcome.loss}, grad_norm {outcome.grad_norm}, max_skipped_steps={limit}); the last "
                f"checkpoint, step {self.saved_step}, is intact: lower optim.lr or look at the data, then start again"
            )

    def save_is_due(self) -> bool:
        """By the count of steps, and after the last one."""
        step, every = self.run.progress.step, self.run.config.checkpoint.every_steps
        return step == self.run.config.num_steps or (every > 0 and step % every == 0)

    def save(self, *, wanted: bool = False) -> bool:
        """Writes a checkpoint of the current step; False where there is none after all, with nothing old harmed.

        Args:
            wanted: save even while losses are not finite: the run stops here. Otherwise the weights may be what makes
                them so, and the last good checkpoint stays the newest.
        """
        self.settle()
        run, progress = self.run, self.run.progress
        if progress.skipped_in_row and not wanted and progress.step < run.config.num_steps:
            return False
        self.saved_at = time.monotonic()
        aside = aside_folder(run.run_dir, progress.step)
        problem: str | None = None
        try:
            save_tensors(aside, run.stepper.model, inner_optimizer(run.stepper.optimizer))
            if run.runtime.is_main:
                publish(aside, run.state, dump_config(run.config))
        except OSError as error:
            problem = str(error)
        problem = run.runtime.from_main(problem)
        if problem is not None:
            if run.runtime.is_main:
                discard(aside)
                log.error(
                    "CHECKPOINT OF STEP %d FAILED (%s); the run goes on and tries again when the next is due; "
                    "the newest good one is step %d",
                    progress.step,
                    problem,
                    self.saved_step,
                )
            return False
        self.saved_step = progress.step
        if run.runtime.is_main:
            policy = run.config.checkpoint
            apply_retention(run.run_dir, keep_last=policy.keep_last, keep_every=policy.keep_every)
        return True

    def evaluate_if_due(self) -> None:
        """Runs the evaluations that belong to the current step and have no result yet, on all ranks."""
        run, step = self.run, self.run.progress.step
        for name, path in self.missing_evaluations().items():
            self.settle()
            try:
                scores = self._evaluate(run.config.evaluate[name])
            except InputError as error:  # the same on all ranks; an evaluation set is no reason to lose a run
                if run.runtime.is_main:
                    log.error("EVALUATION %s OF STEP %d FAILED (%s); the run goes on", name, step, error)
                continue
            if run.runtime.is_main:
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, json.dumps({"step": step, "name": name, **scores}, indent=2))
                run.monitor.track({f"eval/{name}/{metric}": value for metric, value in scores.items()}, step=step)
                log.info("step %d  %s  %s", step, name, "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))

    def missing_evaluations(self) -> dict[str, Path]:
        """The evaluations due at the current step whose result file does not exist, with that file."""
        run, step = self.run, self.run.progress.step
        last = step == run.config.num_steps
        due = {
            name: run.run_dir / "eval" / f"{name}-{step:08d}.json"
            for name, config in run.config.evaluate.items()
            if last or (config.every_steps > 0 and step > 0 and step % config.every_steps == 0)
        }
        if not due:
            return {}
        missing = [name for name, path in due.items() if not path.exists()]
        return {name: due[name] for name in run.runtime.from_main(missing)}

    def _evaluate(self, config: EvaluateConfig) -> dict[str, float]:
        run = self.run
        run.stepper.towers.eval()
        with torch.no_grad(), run.runtime.accelerator.autocast():
            scores = run_evaluation(config, run.encoder, run.runtime.group)
        run.stepper.towers.train()
        return scores


def _known_failure(error: Exception) -> RunError | None:
    """A line for a person instead of a library's error, for failures that come from outside."""
    reason = " ".join(str(error).split())[:200]
    if (
        isinstance(error, RuntimeError) and "DataLoader worker" in reason
    ):  # may rise anywhere, by torch's SIGCHLD handler
        return RunError(f"a loader process died ({reason}); often memory or /dev/shm is full: lower data.workers")
    if isinstance(error, torch.distributed.DistError) or "Connection closed by peer" in reason:
        return RunError(f"lost contact with another process, whose own message says why ({reason}); start again")
    return None


def _write_status(run_dir: Path, status: Status, step: int, reason: str) -> None:
    write_atomically(run_dir / "status.json", json.dumps({"status": status.word, "step": step, "reason": reason}))


def _write_failure(run: Run, error: Exception) -> None:
    """Any rank may fail alone; its reason stands unless it is only that another rank went away."""
    path = run.run_dir / "status.json"
    if isinstance(error, ClipxError) or not path.exists():
        with suppress(OSError):  # a full disk may be the very reason; the error itself goes on to the person
            _write_status(run.run_dir, Status.FAILED, run.progress.step, f"rank {run.runtime.rank}: {error}")
