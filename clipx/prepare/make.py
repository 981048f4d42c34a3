"""Makes shards from rows: in parallel, equal bytes for equal input, and so that a second start goes on with the first.

Shard i holds the rows of the i-th stretch of the order, less those that make no sample; no shard depends on another.

    OUT/  00000.tar ...     the shards, and their index
          make.json         what was asked for, and what became of it
          left_out.jsonl    rows that made no sample, and why
          .making/          while it lasts: the request, and a report for each shard that is done
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from clipx import counter_random
from clipx.data.index.shard_index import build_index
from clipx.data.parallel import in_processes
from clipx.errors import InputError, RunError
from clipx.prepare.make_shard import MAKING, MakeOptions, ShardJob, ShardMaker, ShardReport
from clipx.prepare.rows import Rows
from clipx.printable import json_text, redacted
from clipx.storage.files import is_local, write_file

REPORT = "left_out.jsonl"
_MIN_ROWS_FOR_LIMIT = 100
_SHUFFLED_BLOCKS = 8  # of rows that can only be read together, so many are mixed: a shard reads parts of all of them


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of the rows."""

    num_shards: int
    num_samples: int
    left_out: dict[str, int]
    """Rows that made no sample, by reason."""
    extensions: dict[str, int]
    """Images by their extension, the most frequent first."""


def make_shards(
    rows: Rows,
    out: str,
    options: MakeOptions,
    *,
    workers: int,
    max_bad: float = 0.01,
    on_progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Makes the shards that are not there yet, then the index and the reports; `on_progress` gets (rows done, rows).

    `out` is a local folder: new, empty, or begun by an equal call. `max_bad` is the share of all rows, if there are 100
    or more, that may be left out.

    Raises:
        InputError: `out` holds something else, was begun with other arguments, or cannot be written.
        RunError: too many rows make no sample, or none does; a shard cannot be written.
    """
    if not is_local(out):
        raise InputError(f"--out {out}: shards are made in a local folder; copy them to where they belong afterwards")
    folder = Path(out).expanduser()
    request = _request(rows, options)
    if _prepare_folder(folder, request):
        return Made(**json.loads((folder / "make.json").read_bytes())["made"])
    jobs = _jobs(rows, options)
    make = ShardMaker(rows=rows, folder=folder, options=options, width=max(5, len(str(len(jobs) - 1))))
    reports = [report for job in jobs if (report := make.report(job.number)) is not None]
    done = {report.shard for report in reports}
    num_rows, num_left_out = sum(report.num_rows for report in reports), sum(len(report.left_out) for report in reports)
    limit = max_bad * len(rows) if len(rows) >= _MIN_ROWS_FOR_LIMIT else len(rows) - 1
    for report in in_processes(make, [job for job in jobs if job.number not in done], workers=workers):
        reports.append(report)
        num_rows, num_left_out = num_rows + report.num_rows, num_left_out + len(report.left_out)
        if on_progress is not None:
            on_progress(num_rows, len(rows))
        if num_left_out > limit:
            break
    if num_left_out > min(limit, len(rows) - 1):
        raise _too_many(reports, len(rows), max_bad, folder)
    return _finish(folder, request, reports)


def _request(rows: Rows, options: MakeOptions) -> dict[str, object]:
    """What decides the bytes of the shards, as JSON gives it back."""
    chosen = asdict(options)
    chosen |= chosen.pop("images")
    chosen["source"] = hashlib.sha256(json.dumps(rows.identity()).encode()).hexdigest()
    request: dict[str, object] = json.loads(json.dumps(chosen))
    return request


def _prepare_folder(folder: Path, request: dict[str, object]) -> bool:
    """Makes the folder, or sees that an equal request began it; returns whether that one is complete."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / "make.json", folder / MAKING / "request.json"):
            if path.is_file():
                _require_equal(json.loads(path.read_bytes())["request"], request, folder)
                return path.name == "make.json"
        if any(folder.iterdir()):
            raise InputError(f"--out {folder} holds something else; choose a new folder")
        write_file(str(folder / MAKING / "request.json"), json.dumps({"request": request}).encode())
    except OSError as error:
        raise InputError(f"--out {folder} cannot be used: {error.strerror or error}; choose another folder") from error
    return False


def _require_equal(before: dict[str, object], now: dict[str, object], folder: Path) -> None:
    changed = [
        f"{key} was {before.get(key)}, now {now[key]}" for key in now if key != "source" and before.get(key) != now[key]
    ]
    if before.get("source") != now["source"]:
        changed.append("the source is another or has changed")
    if changed:
        raise InputError(
            f"--out {folder} was begun otherwise: {'; '.join(changed)}; restore that or choose a new folder"
        )


def _jobs(rows: Rows, options: MakeOptions) -> list[ShardJob]:
    """The shards, none of them empty."""
    order = _order(len(rows), rows.block_rows, options.shuffle)
    if options.num_shards is None:
        cuts = [*range(0, len(rows), options.shard_size), len(rows)]
    else:
        num_shards = min(options.num_shards, len(rows))
        cuts = [len(rows) * i // num_shards for i in range(num_shards + 1)]
    return [ShardJob(i, order[start:stop]) for i, (start, stop) in enumerate(pairwise(cuts))]


def _order(num_rows: int, block_rows: int, seed: int | None) -> Sequence[int] | np.ndarray:
    """Row numbers in the order of the shards.

    If rows can only be read in blocks, the blocks are permuted, and then the rows of 8 blocks at a time: a shard
    that drew its rows from everywhere would cost reading everything.
    """
    if seed is None:
        return range(num_rows)
    start = counter_random.start(seed, counter_random.Stream.SHARD_ORDER)
    blocks = counter_random.permutation(counter_random.fold(start, 0), -(-num_rows // block_rows))[0]
    if block_rows == 1:
        return blocks
    mixed = []
    for round_index, first in enumerate(range(0, len(blocks), _SHUFFLED_BLOCKS), start=1):
        near = blocks[first : first + _SHUFFLED_BLOCKS, None] * block_rows + np.arange(block_rows)
        near = near[near < num_rows]
        mixed.append(near[counter_random.permutation(counter_random.fold(start, round_index), len(near))[0]])
    return np.concatenate(mixed)


def _too_many(reports: Sequence[ShardReport], num_rows: int, max_bad: float, folder: Path) -> RunError:
    """What is left out, and what to do; the list is kept."""
    _write_report(folder, reports)
    reasons = _by_reason(reports)
    first = next(row for report in reports for row in report.left_out)
    detail = f" ({first['detail']})" if first["detail"] else ""
    limited = num_rows >= _MIN_ROWS_FOR_LIMIT and max_bad < 1
    return RunError(
        f"{sum(reasons.values()):,} of {num_rows:,} rows make no sample{f', more than --max-bad {max_bad}' * limited}: "
        f"{', '.join(f'{reason} {count:,}' for reason, count in reasons.items())}; the first is {first['name']}: "
        f"{first['reason']}{detail}; all are in {folder / REPORT}: mend them and choose a new --out"
        f"{', or raise --max-bad to go on' * limited}"
    )


def _finish(folder: Path, request: dict[str, object], reports: list[ShardReport]) -> Made:
    """Writes the index and the reports, and removes what only a second start would need."""
    _write_report(folder, reports)
    build_index([str(folder)], index_dir=None)
    extensions: Counter[str] = Counter()
    for report in reports:
        extensions.update(report.extensions)
    made = Made(
        num_shards=sum(report.num_samples > 0 for report in reports),
        num_samples=sum(report.num_samples for report in reports),
        left_out=_by_reason(reports),
        extensions=dict(extensions.most_common()),
    )
    content = json.dumps({"request": request, "made": asdict(made)}, indent=2)
    write_file(str(folder / "make.json"), content.encode())
    shutil.rmtree(folder / MAKING)
    for leftover in folder.glob(".*.tar.*"):  # of processes that were killed while they wrote
        leftover.unlink()
    return made


def _by_reason(reports: Iterable[ShardReport]) -> dict[str, int]:
    counts = Counter(str(row["reason"]) for report in reports for row in report.left_out)
    return dict(counts.most_common())


def _write_report(folder: Path, reports: Iterable[ShardReport]) -> None:
    rows = [row for report in sorted(reports, key=lambda report: report.shard) for row in report.left_out]
    lines = "".join(json_text(redacted(row)) + "\n" for row in rows)
    write_file(str(folder / REPORT), lines.encode("utf-8", "replace"))
