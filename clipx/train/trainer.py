"""The training loop. `train` is what `clipx train` calls: it starts, resumes, or reports that the run is complete."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from clipx.config.fit import FitConfig
from clipx.config.phases import phase_at
from clipx.config.schema import JobConfig
from clipx.distributed.runtime import Runtime, start_runtime
from clipx.errors import RunError
from clipx.objectives.build import build_objective
from clipx.objectives.objective import BuildObjective
from clipx.storage.standard_error import surviving_stderr
from clipx.train.build import Run, build_run
from clipx.train.evaluations import due_evaluations, early_stopping, evaluate, missing_evaluations
from clipx.train.liveness.heartbeat import join_heartbeats
from clipx.train.liveness.run_lock import run_lock
from clipx.train.liveness.status import Status, explain, write_failure, write_status
from clipx.train.liveness.stops import StopAskedError, StopRequest, catch_stops
from clipx.train.liveness.watchdog import Watchdog
from clipx.train.loss_spikes import LossSpikeError, Rollback, SpikeDetector, rollback
from clipx.train.metrics.monitor import logging_to_stderr, own_stats
from clipx.train.metrics.profiling import Profiler
from clipx.train.metrics.step_metrics import InFlightStep, StepMetrics, StopOrSave
from clipx.train.run_folder import check_folder, open_folder
from clipx.train.saving import Saver
from clipx.train.starts import record_start
from clipx.types import Batch

log = logging.getLogger(__name__)

_FP16_SEARCH = 32  # overflows in a row in which the loss scaler may search its scale, from 2^16 down


def train(config: JobConfig, *, objective: BuildObjective = build_objective) -> int:
    """Does what `run` does; returns the exit code of a process that does nothing else."""
    return run(config, objective=objective).exit_code


def run(config: JobConfig, *, objective: BuildObjective = build_objective) -> Status:
    """Runs a config to its end or to a stop.

    In the main thread it takes the config's signals and Ctrl-C for requests to stop, until it returns; logging is set
    up for as long, if nobody has done that.

    Args:
        config: the run.
        objective: what builds the objective that is trained; by default the one that the config describes.

    Returns:
        `Status.COMPLETE`, or `Status.AGAIN`: saved and stopped on request, to be called again.

    Raises:
        ClipxError: the run cannot start or go on; status.json says `failed` and why.
    """
    run_dir = Path(config.run_dir)
    stop = StopRequest(run_dir, max_minutes=config.max_minutes)
    with ExitStack() as held:
        held.enter_context(surviving_stderr())
        held.enter_context(catch_stops(stop, config.stop_signals))
        runtime = held.enter_context(start_runtime(config))
        held.enter_context(logging_to_stderr(is_main=runtime.is_main))
        with runtime.raise_on_all_ranks():
            if runtime.is_main:
                check_folder(run_dir)
                held.enter_context(run_lock(run_dir))
        # from here on the folder is this start's, and status.json its word
        return _run_phases(_resolved(config, runtime), runtime, stop, objective)


def _resolved(config: JobConfig, runtime: Runtime) -> JobConfig:
    """The config with all that is found in the data before training: rank 0 looks, for all.

    Raises:
        InputError: the data does not fit it; on all ranks alike, and status.json says so.
    """
    if not isinstance(config, FitConfig):
        return config
    from clipx.fitting.resolve import resolve

    try:
        with runtime.raise_on_all_ranks():
            if runtime.is_main:
                config = resolve(config)
    except Exception as error:
        explained = explain(error)
        write_failure(Path(config.run_dir), explained, step=0, rank=runtime.rank)
        raise explained from error
    return runtime.broadcast_from_rank0(config)


def _run_phases(config: JobConfig, runtime: Runtime, stop: StopRequest, objective: BuildObjective) -> Status:
    """Builds the run for each of its phases, and after each rollback, until it ends."""
    run: Run | None = None
    status: Status | None = None
    pending_rollback: Rollback | None = None
    step = 0

    def note_failure(error: Exception) -> None:
        reached = step if run is None else run.progress.step
        write_failure(Path(config.run_dir), error, step=reached, rank=runtime.rank)

    def between() -> None:
        watchdog.set_activity("start", step=step)
        if runtime.is_main:
            stop.look()
        if any(runtime.gather_objects(bool(stop))):
            raise StopAskedError

    with _watchdog(config, runtime, lambda reason: note_failure(RunError(reason))) as watchdog:
        try:
            while status is None:
                watchdog.set_activity("start", step=step)
                try:
                    run = build_run(config, runtime, pending_rollback, build=objective, between=between)
                    status, pending_rollback = Loop(run, stop, watchdog).fit(), None
                except StopAskedError:
                    status = Status.AGAIN
                    break
                except LossSpikeError as spike:
                    assert run is not None
                    pending_rollback = rollback(spike, run.progress, config=config, runtime=runtime)
                step = run.progress.step
                if status is None:
                    run = None  # or this phase's weights would stand beside the next one's
                    runtime.release()
        except Exception as error:
            explained = explain(error)
            note_failure(explained)
            raise explained from error
        watchdog.set_activity("end", step=step)
        early = early_stopping(run).early_end if run is not None and status is Status.COMPLETE else None
        _finish(Path(config.run_dir), runtime, status, stop, step=step, early=early)
        if run is not None:
            run.monitor.close_trackers()
    return status


def _finish(
    run_dir: Path, runtime: Runtime, status: Status, stop: StopRequest, *, step: int, early: str | None
) -> None:
    """After all ranks have ended, rank 0 says how; `early` is why a complete run has not done all its steps."""
    runtime.barrier()
    if not runtime.is_main:
        return
    asked = stop.reason or "a stop signal at another process"
    why = (early or "all steps done") if status is Status.COMPLETE else asked
    try:
        write_status(run_dir, status, step=step, reason=why)
        stop.forget_file()
    except OSError as error:  # all is saved, maybe elsewhere, and the exit code says so too
        log.error("cannot write status.json in %s (%s)", run_dir, error)
    log.info("%s at step %d%s: %s", status.word, step, "" if early is None else f" ({early})", run_dir)


def _watchdog(config: JobConfig, runtime: Runtime, note: Callable[[str], None]) -> Watchdog:
    """This rank's watchdog; all ranks call this."""
    return Watchdog(
        stall_timeout_s=config.stall_timeout_s,
        timeout_s=config.parallel.timeout_s,
        rank=runtime.rank,
        run_dir=Path(config.run_dir),
        heartbeats=join_heartbeats(runtime),
        on_stall=note,
    )


class Loop:
    """One start of a run: the steps, and what happens between them."""

    def __init__(self, run: Run, stop: StopRequest, watchdog: Watchdog) -> None:
        self.run = run
        self.stop = stop
        self.watchdog = watchdog
        self.pending: InFlightStep | None = None
        self.newest: StepMetrics | None = None
        self.data_wait_s = 0.0
        self.saver = Saver(run)
        self.profiler = Profiler(
            run.run_dir / "profile",
            first_step=run.config.track.profile_step if run.runtime.is_main else 0,
            num_steps=run.config.track.profile_steps,
        )
        self.spikes = _spike_detector(run)

    def fit(self) -> Status | None:
        """Trains to the end of the phase, or to a stop that all ranks agreed on.

        Returns:
            How the run stands; None where another phase follows.
        """
        run, progress = self.run, self.run.progress
        if not missing_evaluations(run) and (progress.step == run.length.num_steps or early_stopping(run).early_end):
            return Status.COMPLETE
        with run.runtime.raise_on_all_ranks():
            open_folder(run)
        record_start(run, began_at=self.stop.began_at)
        run.monitor.open_trackers(wandb_id=run.state.wandb_id)
        with run.monitor, closing(run.batches()) as batches, closing(self.profiler), self._saving():
            if run.branched:  # what the run goes back to must not be another one's to remove
                self.save(stopping=False)
            if self.evaluate_if_due():  # what a kill between a save and its evaluation left undone
                return Status.COMPLETE
            while progress.step < run.phase.until:
                orders = self.launch_step(self.next_batch(batches))
                if orders.stop or orders.save or self.saver.is_due():
                    self.save(stopping=orders.stop)
                if orders.stop and progress.step < run.length.num_steps:
                    return Status.AGAIN
                if self.evaluate_if_due():
                    self.save(stopping=True)
                    return Status.COMPLETE
        if progress.step == run.length.num_steps:
            return Status.COMPLETE
        if run.runtime.is_main:
            log.info("step %d: the next phase begins", progress.step)
        # asked in the last step or since: it is saved already, and the next phase may take minutes to build
        return Status.AGAIN if any(run.runtime.gather_objects(bool(self.stop))) else None

    def next_batch(self, batches: Generator[Batch]) -> Batch:
        """This rank's next batch, on the host."""
        self.watchdog.set_activity("data", step=self.run.progress.step)
        began = time.perf_counter()
        batch = next(batches)
        self.data_wait_s = time.perf_counter() - began
        self.run.monitor.record_data_wait(self.data_wait_s, step=self.run.progress.step + 1)
        return batch

    def launch_step(self, batch: Batch) -> StopOrSave:
        """Launches one step, then reads the one before; returns what all ranks were asked for in that one."""
        run, progress = self.run, self.run.progress
        self.watchdog.set_activity("step", step=progress.step)
        self.profiler.before_step(progress.step + 1)
        if run.runtime.is_main:
            self.stop.look()
        requests = StopOrSave(stop=bool(self.stop), save=self.saver.is_late() and run.runtime.is_main)
        stats = own_stats(self.newest, data_wait_s=self.data_wait_s, read_wait_s=batch.read_wait_s)
        launched = run.stepper(batch, step=progress.step, requests=requests, stats=stats)
        progress.step += 1
        progress.go_to(batch.index + 1)
        progress.samples_seen += run.config.global_batch_size
        outcome = self.read_pending_step()
        self.pending = launched
        return StopOrSave() if outcome is None else StopOrSave(stop=outcome.stop, save=outcome.save)

    def read_pending_step(self) -> StepMetrics | None:
        """Reads the step that is still pending, if any: counts, records, and ends a run that cannot go on.

        Raises:
            RunError: too many bad steps in a row, or too many bad samples; on all ranks alike.
            LossSpikeError: the loss spiked; on all ranks alike.
        """
        if self.pending is None:
            return None
        outcome, self.pending = self.pending.read(), None
        self.newest = outcome
        run, progress = self.run, self.run.progress
        self._count(outcome)
        if outcome.num_bad:
            gathered = run.runtime.gather_objects(outcome.bad_here)
            everyones = [sample for of_rank in gathered for sample in of_rank]
            run.quarantine.add(everyones, step=outcome.step, write=run.runtime.is_main)
        figures = run.data_figures(outcome.batch + 1)
        run.monitor.record(outcome, progress, bad_samples=len(run.quarantine), data=figures)
        run.quarantine.check(
            samples_seen=(outcome.batch + 1) * run.plan.global_batch_size,
            num_samples=run.state.data_order.num_samples,
            max_bad_fraction=run.config.data.max_bad_fraction,
        )
        self._check_skipped(outcome)
        self._check_spike(outcome)
        return outcome

    def _count(self, outcome: StepMetrics) -> None:
        progress = self.run.progress
        if outcome.good:
            progress.skipped_in_row = 0
            return
        progress.skipped_in_row += 1
        if self.run.config.precision == "fp16" and math.isfinite(outcome.loss):
            progress.overflow_steps += 1
        else:
            progress.skipped_steps += 1

    def _check_skipped(self, outcome: StepMetrics) -> None:
        limit = self.run.config.max_skipped_steps
        if self.run.config.precision == "fp16":
            limit += _FP16_SEARCH
        if self.run.progress.skipped_in_row >= limit:
            self.watchdog.set_activity("save", step=outcome.step)
            # the first bad loss came from the weights after the step before it, and they have not changed since
            self.saver.drop_suspects(after_step=outcome.step - limit - 1)
            saved = self.saver.saved_step
            intact = f"the last checkpoint from before, step {saved}, is intact" if saved else "there is no checkpoint"
            raise RunError(
                f"loss or gradient was not finite in {limit} steps in a row, up to step {outcome.step} "
                f"(loss {outcome.loss}, grad_norm {outcome.grad_norm}); {intact}: lower optim.lr or look at the data, "
                "then start again"
            )

    def _check_spike(self, outcome: StepMetrics) -> None:
        z_score = None if self.spikes is None else self.spikes.look(outcome.loss)
        if z_score is not None:
            self.watchdog.set_activity("save", step=outcome.step)
            self.saver.wait()  # or it would come to stand among the checkpoints after these were set aside
            raise LossSpikeError(step=outcome.step, batch=outcome.batch, loss=outcome.loss, z_score=z_score)

    def save(self, *, stopping: bool, is_best: bool = False) -> None:
        """Saves the current step, the best one so far if it `is_best`.

        Raises:
            RunError: the run ends here and the disk did not take its state.
        """
        self.read_pending_step()
        self.watchdog.set_activity("save", step=self.run.progress.step)
        with self.run.monitor.pause():
            self.saver.save(stopping=stopping, is_best=is_best)
        self.run.monitor.saved(self.saver.pop_pause_seconds())
        step = self.run.progress.step
        if self.saver.saved_step != step and (stopping or step == self.run.phase.until):
            raise RunError(
                f"step {step} ends the run or its phase, and its checkpoint could not be written to "
                f"{self.run.run_dir}; the newest good one is step {self.saver.saved_step}: free space and start again"
            )

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.watchdog.set_activity("save", step=self.run.progress.step)  # which may be waited for
            self.saver.close()

    def evaluate_if_due(self) -> bool:
        """Runs the evaluations that belong to the current step and have no result yet, on all ranks.

        With `stop`, a step that is the best so far is saved. Evaluations come first: of a large encoder that stays as
        it is, epochs may take less than a save does.

        Returns:
            Whether the run ends here, before its last step.
        """
        if missing := missing_evaluations(self.run):
            self.read_pending_step()
            evaluate(self.run, missing, watchdog=self.watchdog)
        if not due_evaluations(self.run):
            return False
        found = early_stopping(self.run)
        if found.is_best:
            self.save(stopping=False, is_best=True)
        return found.early_end is not None


def _spike_detector(run: Run) -> SpikeDetector | None:
    """Looks at every loss, where the config asks for it; what it remembers is saved with the progress."""
    config, progress = run.config, run.progress
    if config.spikes is None:
        progress.recent_losses.clear()
        return None
    detector = SpikeDetector(config.spikes, progress.recent_losses)
    if progress.step and phase_at(config, progress.step - 1, run.length) != run.phase:
        detector.reset()
    return detector
