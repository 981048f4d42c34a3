"""What a run shows: metrics.jsonl, trackers, the progress display, and the list of bad samples. Rank 0 writes."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clipx.checkpoint.state import Progress as RunProgress
from clipx.checkpoint.store import write_atomically
from clipx.config.schema import RunConfig
from clipx.distributed.runtime import Runtime, start_trackers
from clipx.errors import RunError
from clipx.train.step import StepOutcome
from clipx.types import BadSample

log = logging.getLogger(__name__)

_LINE_EVERY_S = 5.0  # plain lines: often enough to see life, seldom enough for a log of days
_BAD_COUNTED_FROM = 100  # distinct samples below which a share of bad ones says nothing


class _StderrOfNow(logging.Handler):
    """Writes to what sys.stderr is at that moment: while a progress bar stands, rich is there and keeps lines whole."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def start_logging(*, is_main: bool) -> None:
    """Messages for the person from rank 0, errors from all; no effect where the program has set up logging itself."""
    logging.basicConfig(
        level=logging.INFO if is_main else logging.ERROR, format="%(message)s", handlers=[_StderrOfNow()]
    )


class Quarantine:
    """The bad samples a run has met, each once; the same on every rank."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        """Reads what an earlier start wrote; what it met after the resumed step counts when it is met again."""
        self.path = path
        rows = _read_rows(path)
        self._written = {(row["shard"], row["key"]) for row in rows}
        self._met = {(row["shard"], row["key"]) for row in rows if row["step"] <= resumed_step}

    def __len__(self) -> int:
        return len(self._met)

    def add(self, samples: Sequence[BadSample], *, step: int, write: bool) -> None:
        """Takes records of all ranks; `write` (rank 0) appends the new ones to quarantine.jsonl."""
        fresh = {(sample.shard, sample.key): sample for sample in samples}
        if write:
            rows = [{"step": step, **asdict(sample)} for name, sample in fresh.items() if name not in self._written]
            _append(self.path, rows)
        self._written |= fresh.keys()
        self._met |= fresh.keys()

    def check(self, *, samples_seen: int, num_samples: int, max_bad_fraction: float) -> None:
        """Ends the run when too many of the distinct samples read so far were bad.

        Raises:
            RunError: with the count, the rule and where the list is.
        """
        distinct = min(samples_seen, num_samples)
        if distinct >= _BAD_COUNTED_FROM and len(self) > max_bad_fraction * distinct:
            raise RunError(
                f"{len(self)} of {distinct} distinct samples are bad, more than "
                f"data.max_bad_fraction={max_bad_fraction}; see {self.path}, mend the shards or raise the limit"
            )


class Monitor:
    """Figures of a run, for files, trackers and the person; a context that opens and closes the display."""

    def __init__(self, runtime: Runtime, config: RunConfig) -> None:
        self._runtime = runtime
        self._config = config
        self._metrics = Path(config.run_dir) / "metrics.jsonl"
        self._num_steps = config.num_steps
        self._global_batch_size = config.global_batch_size
        self._data_wait_s = 0.0
        self._last_row: tuple[int, float] | None = None
        self._last_line = float("-inf")
        self._display: _Display | None = None
        self._tracking = False

    def __enter__(self) -> Self:
        if self._runtime.is_main:
            self._display = _Display(self._num_steps)
        return self

    def __exit__(self, *_: tuple[type[BaseException], BaseException, TracebackType]) -> None:
        if self._display is not None:
            self._display.close()

    def rewind(self, step: int) -> None:
        """Drops rows of steps that a resumed run will train again, so that each step has one row."""
        self._last_row = (step, time.perf_counter())
        if self._runtime.is_main and self._metrics.exists():
            kept = [row for row in _read_rows(self._metrics) if row["step"] <= step]
            write_atomically(self._metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def waited(self, seconds: float) -> None:
        """Adds to the time that training stood waiting for data."""
        self._data_wait_s += seconds

    def record(self, outcome: StepOutcome, progress: RunProgress, *, bad_samples: int) -> None:
        """Takes one finished step; writes a row when one is due."""
        if outcome.step % self._config.track.every_steps and outcome.step != self._num_steps:
            return
        row = self._row(outcome, progress, bad_samples)
        if not self._runtime.is_main:
            return
        _append(self._metrics, [row])
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
        """Starts wandb and tensorboard; last, so that a run that cannot start leaves no trace there."""
        self._tracking = True
        with self._surviving("start"):
            start_trackers(
                self._runtime,
                project=self._config.track.project,
                config=asdict(self._config),
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

    def _row(self, outcome: StepOutcome, progress: RunProgress, bad_samples: int) -> dict[str, Any]:
        assert self._last_row is not None, "record before rewind"
        step_before, time_before = self._last_row
        pairs = (outcome.step - step_before) * self._global_batch_size
        row = {
            "step": outcome.step,
            "samples_seen": outcome.step * self._global_batch_size,
            "loss": outcome.loss,
            "lr": outcome.lr,
            "logit_scale": outcome.logit_scale,
            "grad_norm": outcome.grad_norm,
            "samples_per_s": pairs / max(outcome.launched_at - time_before, 1e-9),
            "data_wait_s": self._data_wait_s,
            "skipped_steps": progress.skipped_steps,
            "overflow_steps": progress.overflow_steps,
            "bad_samples": bad_samples,
        }
        if self._runtime.device.type == "cuda":
            row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._last_row = (outcome.step, outcome.launched_at)
        self._data_wait_s = 0.0
        return row


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; what a crash or a full disk left torn is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Adds lines to a file; a full disk costs the lines and a warning, not the run. Non-finite numbers become null."""
    finite = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]
    try:
        with path.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            torn = file.read() not in (b"", b"\n")
            file.write(b"\n" * torn + b"".join(json.dumps(row).encode() + b"\n" for row in finite))
    except OSError as error:
        log.error("cannot write %s (%s); the run goes on without these lines", path, error)


class _Display:
    """A progress bar on a terminal, plain lines elsewhere; both on standard error."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
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
        text = (
            f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  scale {row['logit_scale']:.1f}  "
            f"{row['samples_per_s']:.0f} pairs/s  waited {row['data_wait_s']:.1f} s"
        )
        problems = {name: row[name] for name in ("skipped_steps", "bad_samples") if row[name]}
        text += "".join(f"  {name.replace('_', ' ')} {count}" for name, count in problems.items())
        if self.live:
            self._bar.update(self._task, completed=row["step"], description=text)
        else:
            print(f"step {row['step']}/{self._num_steps}  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the last state on the screen."""
        self._bar.stop()
