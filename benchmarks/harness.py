"""What every benchmark needs: alternating timings, peak memory, rows with their circumstances, the common arguments.

The scripts beside this import it as a sibling (`from harness import alternate`) and run from anywhere. Run by itself it
prints the rows of `results/`, those of today for instance: `harness.py --since 2026-11-22`.
"""

import argparse
import csv
import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

Thing = TypeVar("Thing")

RESULTS = Path(__file__).parent / "results"
CIRCUMSTANCES = ("date", "commit", "hardware", "python", "torch", "cuda", "open_clip")
"""Columns that `write_rows` adds to every row."""


@dataclass(frozen=True)
class Timing:
    """Percentiles over repetitions: seconds, or a number without unit where it comes from `ratio`."""

    p20: float
    p50: float
    p80: float
    count: int
    samples: tuple[float, ...] = ()
    """One per repetition, in their order."""

    @staticmethod
    def of(samples: Sequence[float]) -> "Timing":
        """The percentiles of at least one sample, linear between neighbours."""
        p20, p50, p80 = torch.quantile(
            torch.tensor(samples, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        ).tolist()
        return Timing(p20=p20, p50=p50, p80=p80, count=len(samples), samples=tuple(samples))


def alternate(
    contenders: Mapping[str, Callable[[], object]], *, repetitions: int, warmup: int, device: torch.device
) -> dict[str, Timing]:
    """Wall time of each contender; every repetition runs all of them once, and another one begins each time.

    What else the machine does then meets all of them alike. On CUDA the clock is read after synchronisation. Garbage is
    collected between repetitions and not within them.
    """
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.disable()
    try:
        for repetition in range(-warmup, repetitions):
            gc.collect()
            first = repetition % len(names)
            for name in names[first:] + names[:first]:
                seconds = _timed(contenders[name], device)
                if repetition >= 0:
                    samples[name].append(seconds)
    finally:
        gc.enable()
    return {name: Timing.of(seconds) for name, seconds in samples.items()}


def ratio(numerator: Timing, denominator: Timing) -> Timing:
    """Percentiles of the ratio of times, repetition by repetition: runs beside each other share their disturbances."""
    return Timing.of([a / b for a, b in zip(numerator.samples, denominator.samples, strict=True)])


def speed_rows(times: Mapping[str, Timing], count: int) -> list[dict[str, object]]:
    """The first contender beside each of the others: how many of `count` things a second, and the ratio of speeds.

    Every timing is that of one pass over `count` things; `ratio` is above 1 where the first contender is faster.
    """
    (ours, own), *others = times.items()
    rows: list[dict[str, object]] = []
    for peer, timing in others:
        faster = ratio(timing, own)
        row: dict[str, object] = {"ours": ours, "peer": peer, "count": count, "repetitions": own.count}
        row |= {f"{side}_per_s": count / time.p50 for side, time in (("ours", own), ("peer", timing))}
        rows.append(row | {"ratio_p20": faster.p20, "ratio_p50": faster.p50, "ratio_p80": faster.p80})
    return rows


def batches(things: Sequence[Thing], size: int) -> Iterator[Sequence[Thing]]:
    """Consecutive parts of a sequence, of `size` each but for the last."""
    return (things[start : start + size] for start in range(0, len(things), size))


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Bytes by which a call raises what torch's allocator has handed out on `device`, at the highest point.

    Counted above what stood before the call: parameters that exist do not count, gradients made within do. It counts
    tensors and the temporaries of kernels; not what libraries take past torch's allocator, and not fragmentation.
    CUDA: the caching allocator's own peak. CPU: torch's profiler reports every allocation and release; call it where
    nothing is timed.
    """
    gc.collect()
    if device.type == "cuda":
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        kept = function()
    del kept
    result = profiler.kineto_results
    assert result is not None
    changes = [event for event in result.events() if event.name() == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak


def device_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --device, --threads, --out and --repetitions; read them by `prepare`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch (default: torch's choice)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV files (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=20, help="timed repetitions (default: %(default)s)")


def prepare(arguments: argparse.Namespace) -> torch.device:
    """Sets the number of threads; returns the device.

    Raises:
        SystemExit: CUDA is asked for and not there.
    """
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")


def write_rows(topic: str, rows: Sequence[Mapping[str, object]], out: Path = RESULTS) -> Path:
    """Appends rows, with their circumstances, to `<out>/<topic>.csv`; returns its path.

    A file with other columns keeps its rows and gets the union of the columns; cells that a row lacks stay empty.
    """
    path = out / f"{topic}.csv"
    out.mkdir(parents=True, exist_ok=True)
    new = [_circumstances() | dict(row) for row in rows]
    header, old = read_rows(path)
    columns = list(dict.fromkeys([*header, *(name for row in new for name in row)]))
    if columns != header:
        whole = path.with_suffix(".tmp")
        _write(whole, "w", columns, [*old, *new], with_header=True)
        whole.replace(path)
    else:
        _write(path, "a", columns, new, with_header=False)
    return path


def print_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Prints aligned columns, floats with four significant digits."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells), 0) for i, column in enumerate(columns)]
    for line in [list(columns), ["-" * width for width in widths], *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)), flush=True)


def print_results(folder: Path, since: str) -> None:
    """Prints the rows of every CSV file in `folder` written at or after `since` (UTC, as in their column `date`)."""
    for path in sorted(folder.glob("*.csv")):
        columns, rows = read_rows(path)
        fresh = [row for row in rows if str(row["date"]) >= since]
        filled = [name for name in columns if name not in CIRCUMSTANCES and any(row[name] for row in fresh)]
        if fresh:
            print(f"{path.stem}: {fresh[-1]['hardware']}, torch {fresh[-1]['torch']}, commit {fresh[-1]['commit']}")
            print_table(fresh, filled)
            print()


def _timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of wall time until the function has returned and the device is done."""
    _synchronize(device)
    start = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _circumstances() -> dict[str, object]:
    values = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        _commit(),
        hardware(),
        platform.python_version(),
        torch.__version__,
        torch.version.cuda or "",
        _version("open_clip_torch"),
    )
    return dict(zip(CIRCUMSTANCES, values, strict=True))


@cache
def _commit() -> str:
    """Short commit of this checkout, `+dirty` where other files than results differ from it, empty outside of git."""
    here = str(Path(__file__).parent)
    commands = (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", ":/", ":(exclude)results"])
    try:
        answers = [
            subprocess.run(["git", "-C", here, *command], capture_output=True, check=True) for command in commands
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    commit, changes = (answer.stdout.decode().strip() for answer in answers)
    return commit + ("+dirty" if changes else "")


def hardware() -> str:
    """The processor with the threads that torch uses, and the GPUs where there are any."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    described = f"{model}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        described += f"; {torch.cuda.device_count()} x {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    return described


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def read_rows(path: Path) -> tuple[list[str], list[dict[str, object]]]:
    """The columns and the rows, of strings, of a file of `write_rows`; none where there is no file."""
    if not path.exists():
        return [], []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows: list[dict[str, object]] = [dict(row) for row in reader]
        return list(reader.fieldnames or []), rows


def _write(path: Path, mode: str, columns: list[str], rows: list[dict[str, object]], *, with_header: bool) -> None:
    with path.open(mode, newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        if with_header:
            writer.writeheader()
        writer.writerows({name: _compact(value) for name, value in row.items()} for row in rows)


def _compact(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    command = argparse.ArgumentParser(description="Prints what was measured.")
    command.add_argument("folder", type=Path, nargs="?", default=RESULTS)
    command.add_argument("--since", default="", help="UTC, YYYY-MM-DD HH:MM")
    chosen = command.parse_args()
    print_results(chosen.folder, chosen.since)
