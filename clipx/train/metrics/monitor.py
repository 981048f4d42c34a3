"""What a run shows: metrics.jsonl, trackers and the progress display. Rank 0 writes."""

import logging
import resource
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clipx.checkpoint.state import Progress as RunProgress
from clipx.config.run_length import RunLength
from clipx.config.schema import JobConfig
from clipx.config.sections import as_tree
from clipx.distributed.hardware import peak_flops
from clipx.distributed.runtime import Runtime
from clipx.errors import RunError
from clipx.printable import redacted
from clipx.storage.standard_error import StderrOfNow
from clipx.train.metrics.json_lines import JsonLines, drop_after
from clipx.train.metrics.step_metrics import RankStats, StepMetrics
from clipx.train.metrics.warnings import Diagnosis

log = logging.getLogger(__name__)

_MOST_LOSSES = 3  # that a line shows beside their sum; metrics.jsonl has all
_LINE_EVERY_S = 5.0  # plain lines: often enough to see life, seldom enough for a log of days


@contextmanager
def logging_to_stderr(*, is_main: bool) -> Iterator[None]:
    """Messages for the person from rank 0, errors from all; no effect where the program has set up logging itself."""
    root, ours = logging.getLogger(), StderrOfNow()
    level = root.level
    logging.basicConfig(level=logging.INFO if is_main else logging.ERROR, format="%(message)s", handlers=[ours])
    for talkative in ("botocore", "aiobotocore"):  # where credentials were found, in every process
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.removeHandler(ours)
        root.setLevel(level)


class Monitor:
    """Figures of a run, for files, trackers and the person; a context that opens and closes the display.

    Args:
        runtime: the ranks.
        config: of the run.
        length: of the run, which counts its pairs.
        diagnosis: says what rows mean, where it is bad.
    """

    def __init__(self, runtime: Runtime, config: JobConfig, length: RunLength, diagnosis: Diagnosis) -> None:
        self._runtime = runtime
        self._config = config
        self._metrics = JsonLines(Path(config.run_dir) / "metrics.jsonl")
        self._length = length
        self._num_steps = length.num_steps
        self._diagnosis = diagnosis
        self._peak_flops = peak_flops(runtime.device)
        self._since_row: _SinceRow | None = None
        self._waits: dict[int, float] = {}
        self._last_line = float("-inf")
        self._display: _Display | None = None
        self._tracking = False

    def __enter__(self) -> Self:
        if self._runtime.is_main:
            self._display = _Display(self._num_steps, unit="rows" if self._config.job == "fit" else "pairs")
        return self

    def __exit__(self, *_: tuple[type[BaseException], BaseException, TracebackType]) -> None:
        if self._display is not None:
            self._metrics.append([])  # what waits for space, for the last time
            self._display.close()

    def truncate_after(self, step: int) -> None:
        """Drops rows of steps that a resumed run will train again, so that each step has one row."""
        self._since_row = _SinceRow(step=step, began=time.perf_counter())
        if self._runtime.is_main:
            drop_after(self._metrics.path, step)

    def record_data_wait(self, seconds: float, *, step: int) -> None:
        """Notes how long a step, from 1, stood waiting for its data; it may be known before the step before is read."""
        self._waits[step] = seconds

    def saved(self, lost_s: float) -> None:
        """Notes what a save has cost the training, within a pause."""
        assert self._since_row is not None, "saved before truncate_after"
        self._since_row.checkpoint_s += lost_s

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time within is that of saving or evaluating, between two steps."""
        began = time.perf_counter()
        yield
        assert self._since_row is not None, "pause before truncate_after"
        self._since_row.pause_s += time.perf_counter() - began

    def record(
        self, outcome: StepMetrics, progress: RunProgress, *, bad_samples: int, data: Mapping[str, float]
    ) -> None:
        """Takes one finished step; writes a row, with what is known of the `data` then, when one is due."""
        assert self._since_row is not None, "record before truncate_after"
        self._since_row.add(outcome, data_wait_s=self._waits.pop(outcome.step, 0.0))
        if outcome.step % self._config.track.every_steps and outcome.step != self._num_steps:
            return
        row = {**self._row(outcome, progress, bad_samples), **data}
        if not self._runtime.is_main:
            return
        self._metrics.append([row])
        for warning in self._diagnosis.look(row):
            log.warning("step %d: %s", outcome.step, warning)
        self.track({f"train/{name}": value for name, value in row.items() if name != "step"}, step=outcome.step)
        assert self._display is not None, "record outside of the monitor's context"
        now = time.perf_counter()
        if self._display.live or now - self._last_line >= _LINE_EVERY_S or outcome.step == self._num_steps:
            self._display.show(row)
            self._last_line = now

    def track(self, values: dict[str, Any], *, step: int) -> None:
        """Sends values to the trackers, until one fails."""
        if self._tracking:
            with self._surviving("log to"):
                self._runtime.accelerator.log(values, step=step)

    def open_trackers(self, *, wandb_id: str) -> None:
        """Starts wandb and tensorboard, or goes on with those of the phase before.

        Called last, so that a run that cannot start leaves no trace there.
        """
        self._tracking = True
        if self._runtime.accelerator.trackers:
            return
        from clipx.train.metrics.trackers import start_trackers

        with self._surviving("start"):
            start_trackers(
                self._runtime,
                project=self._config.track.project,
                config=redacted(as_tree(self._config)),
                wandb_mode=self._config.track.wandb,
                wandb_id=wandb_id,
                run_dir=Path(self._config.run_dir),
            )

    def close_trackers(self) -> None:
        """Lets the trackers write what they hold."""
        if self._tracking:
            with self._surviving("close"):
                self._runtime.accelerator.end_training()

    @contextmanager
    def _surviving(self, action: str) -> Iterator[None]:
        """A tracker that fails (its service died, no network) costs its figures, never the run."""
        try:
            yield
        except Exception as error:
            self._tracking = False
            log.error("cannot %s the trackers (%s: %s); the run goes on without", action, type(error).__name__, error)

    def _row(self, outcome: StepMetrics, progress: RunProgress, bad_samples: int) -> dict[str, Any]:
        """The figures at a step; what has a duration covers the time since the row before."""
        assert self._since_row is not None
        since, self._since_row = self._since_row, _SinceRow(step=outcome.step, began=outcome.launched_at)
        pairs = (outcome.step - since.step) * self._config.global_batch_size
        elapsed_s = max(outcome.launched_at - since.began, 1e-9)
        counts = dict(since.counts)
        num_tokens, model_flops = counts.pop("num_tokens"), counts.pop("model_flops")
        row = {
            "step": outcome.step,
            "samples_seen": self._length.samples_seen(outcome.step),
            "lr": outcome.lr,
            "grad_norm": outcome.grad_norm,
            "samples_per_s": pairs / elapsed_s,
            "elapsed_s": elapsed_s,
            "data_wait_s": since.data_wait_s,
            **{f"{section}_s": seconds for section, seconds in since.seconds.items()},
            "pause_s": since.pause_s,
            "checkpoint_s": since.checkpoint_s,
            "padding_removed": 1 - num_tokens / (pairs * self._config.model.text.context_length),
            "skipped_steps": progress.skipped_steps,
            "overflow_steps": progress.overflow_steps,
            "bad_samples": bad_samples,
            "read_wait_s": since.read_waits[self._runtime.rank],
            **_of_ranks(since.data_waits, since.forwards),
            "memory_gib": max(stats.memory_gib for stats in outcome.ranks),
            "peak_memory_gib": _peak_memory_gib(self._runtime.device),
        }
        if self._peak_flops is not None:
            row["mfu"] = model_flops / (elapsed_s * self._runtime.world_size * self._peak_flops)
        if taken := row.keys() & (outcome.figures.keys() | counts.keys()):
            raise RunError(f"figures of the objective have names of the trainer's own: {', '.join(sorted(taken))}")
        return {**{name: row[name] for name in ("step", "samples_seen")}, **outcome.figures, **row, **counts}


@dataclass
class _SinceRow:
    """What has come together since the last row of metrics.jsonl, on this rank; what is counted, on all."""

    step: int
    began: float
    data_wait_s: float = 0.0
    pause_s: float = 0.0
    """Saving and evaluating."""
    checkpoint_s: float = 0.0
    """Saving alone."""
    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    data_waits: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds that each rank waited for its batches."""
    forwards: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of each rank's own work."""
    read_waits: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds that each rank's loader processes waited for remote storage."""

    def add(self, outcome: StepMetrics, *, data_wait_s: float) -> None:
        """Takes one step."""
        self.data_wait_s += data_wait_s
        self.counts.update(outcome.counts)
        self.seconds.update(outcome.seconds)
        for rank, stats in enumerate(outcome.ranks):
            self.data_waits[rank] += stats.data_wait_s
            self.forwards[rank] += stats.forward_s
            self.read_waits[rank] += stats.read_wait_s


def _of_ranks(data_waits: Mapping[int, float], forwards: Mapping[int, float]) -> dict[str, float]:
    """Which rank waited longest for data, and which one's own work took longest, beside the middle one's."""
    waiting, slowest = (max(times, key=times.__getitem__) for times in (data_waits, forwards))
    return {
        "data_wait_max_s": data_waits[waiting],
        "data_wait_rank": waiting,
        "slowest_s": forwards[slowest],
        "slowest_rank": slowest,
        "median_s": statistics.median(forwards.values()),
    }


def own_stats(newest: StepMetrics | None, *, data_wait_s: float, read_wait_s: float) -> RankStats:
    """What this rank tells about itself with a step.

    Args:
        newest: the last step that it has read; None means none yet.
        data_wait_s: seconds that it stood waiting for the step's batch.
        read_wait_s: seconds that its loader processes waited for remote storage, summed.
    """
    forward_s = 0.0 if newest is None else newest.seconds["forward"]
    return RankStats(data_wait_s, forward_s, memory_gib=_memory_gib(), read_wait_s=read_wait_s)


def _memory_gib() -> float:
    """Resident memory of this process now; 0 where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * resource.getpagesize() / 2**30


def _peak_memory_gib(device: torch.device) -> float:
    """The most that this rank has needed so far: on the GPU, or in resident memory where it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


class _Display:
    """A progress bar on a terminal, plain lines elsewhere; both on standard error; samples are called `unit`."""

    def __init__(self, num_steps: int, *, unit: str) -> None:
        self._num_steps, self._unit = num_steps, unit
        console = Console(stderr=True)
        self.live = console.is_terminal
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not self.live,
        )
        self._task = self._bar.add_task("", total=num_steps)
        self._bar.start()

    def show(self, row: dict[str, Any]) -> None:
        """One row, as a person wants to read it."""
        scale = f"scale {row['logit_scale']:.1f}  " if "logit_scale" in row else ""
        parts = {name.removeprefix("loss_"): row[name] for name in row if name.startswith("loss_")}
        parts.pop("s", None)  # seconds
        shown = ", ".join(f"{name} {value:.4f}" for name, value in parts.items())
        losses = f" ({shown})" if 0 < len(parts) <= _MOST_LOSSES else ""
        text = (
            f"loss {row['loss']:.4f}{losses}  lr {row['lr']:.2e}  {scale}"
            f"{row['samples_per_s']:.0f} {self._unit}/s  waited {row['data_wait_s']:.1f} s"
        )
        if "mfu" in row:
            text += f"  MFU {100 * row['mfu']:.1f}%"
        problems = {name: row[name] for name in ("skipped_steps", "bad_samples") if row[name]}
        text += "".join(f"  {name.replace('_', ' ')} {count}" for name, count in problems.items())
        if self.live:
            self._bar.update(self._task, completed=row["step"], description=text)
        else:
            print(f"step {row['step']}/{self._num_steps}  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the last state on the screen."""
        self._bar.stop()
