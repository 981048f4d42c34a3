"""Makes shards from rows: in parallel, equal bytes for equal input, and so that a second start goes on with the first.

Shard i holds the rows of the i-th stretch of the order, less those that make no sample; no shard depends on another.
Every row is a sample, has joined that of an earlier row of the same picture, or stands in left_out.jsonl, which
`_finish` asserts.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from clipx import counter_random
from clipx.config.paths import expand_home
from clipx.data.index.shard_index import build_index
from clipx.data.parallel import in_processes
from clipx.data.rows.class_lists import CLASS_NAMES, DATASET_TYPE
from clipx.data.rows.classes import Classes, find_classes
from clipx.data.rows.row import Rows
from clipx.data.text_cleaning import is_blank
from clipx.errors import InputError, RunError, some_names
from clipx.making.groups import Groups, group_rows
from clipx.making.keys import require_different, sample_keys
from clipx.making.make_shard import MakeOptions, ShardJob, ShardMaker, ShardReport, left_out_line
from clipx.making.out_folder import REPORT, claimed, finish, forget, require_whole
from clipx.printable import json_text, printable, redacted
from clipx.storage.files import is_local, write_file

log = logging.getLogger(__name__)

_MIN_ROWS_FOR_LIMIT = 100
_SHUFFLED_BLOCKS = 8  # of rows that can only be read together, so many are mixed: a shard reads parts of all of them


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of the rows."""

    num_shards: int
    num_samples: int
    left_out: dict[str, int]
    """Rows that made no sample, and files that are no rows, by reason."""
    extensions: dict[str, int]
    """Images by their extension, the most frequent first."""
    num_rows: int = 0
    """Rows and files: samples, rows that joined one, and what is left out."""
    num_joined: int = 0
    """Rows that joined the sample of an earlier row of the same picture."""
    num_several: int = 0
    """Samples with several captions."""
    num_classes: int = 0
    """Classes in the list of their names; 0 for rows without labels."""
    num_without_picture: int = 0
    """Samples without a picture, where they are allowed."""
    num_without_text: int = 0
    """Samples without a caption, where they are allowed."""


def make_shards(
    rows: Rows,
    out: str,
    options: MakeOptions,
    *,
    workers: int,
    max_bad: float = 0.01,
    quiet: bool = False,
    on_grouping: Callable[[int, int], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Makes the shards that are not there yet, then the index and the reports.

    `out` is a local folder: new, empty, or begun by an equal call. `max_bad` is the share of all rows, if there are 100
    or more, that may be left out. Unless `quiet`, a warning tells that all was made before. `on_grouping` gets
    (rows compared, rows), `on_progress` (rows done, rows).

    Raises:
        InputError: `out` holds something else, was begun otherwise, is in use or cannot be written; wrong labels.
        RunError: too many rows make no sample, or none does; a shard cannot be written.
    """
    if not is_local(out):
        raise InputError(f"--out {out}: shards are made in a local folder; copy them to where they belong afterwards")
    folder = Path(expand_home(out))
    request = _request(rows, options, classes := _classes(rows))
    with claimed(folder, request) as made:
        if made is not None:
            before = Made(**made)
            require_whole(folder, before.num_shards)
            if not quiet:
                log.warning("%s was made before and stays as it is; for changed pictures choose another --out", folder)
            return before
        plan = _plan(rows, options, folder, on_grouping)
        digits = len(str(len(plan.stretches) - 1))
        make = ShardMaker(rows=rows, folder=folder, options=options, width=max(5, digits), classes=classes)
        reports = [report for number in range(len(plan.stretches)) if (report := make.report(number)) is not None]
        done = {report.shard for report in reports}
        jobs = (plan.job(number) for number in range(len(plan.stretches)) if number not in done)
        limit = max_bad * len(rows) if len(rows) >= _MIN_ROWS_FOR_LIMIT else len(rows) - 1
        num_left_out = sum(len(report.left_out) for report in reports)
        num_rows = sum(report.num_rows for report in reports)
        for report in in_processes(make, jobs, workers=workers):
            reports.append(report)
            num_rows, num_left_out = num_rows + report.num_rows, num_left_out + len(report.left_out)
            if on_progress is not None:
                on_progress(num_rows, len(rows))
            if num_left_out > limit:
                break
        try:
            _write_report(folder, reports, rows)
            if num_left_out > min(limit, len(rows) - 1):
                raise _too_many(reports, len(rows), max_bad, folder)
            return _finish(make, request, rows, reports)
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error}; run the same command again to go on") from error


def _classes(rows: Rows) -> Classes | None:
    """The classes of rows with labels, which a file with a line for each can hold."""
    classes = find_classes(rows, origin="the source")
    for number, name in enumerate(classes.names if classes else ()):
        is_text = name.encode("utf-8", "replace").decode() == name and not is_blank(name)
        if not is_text or name.splitlines() != [name.strip()]:
            raise InputError(f"the name of class {number}, {name[:80]!r}, is not one line of text; give it another")
    return classes


def _request(rows: Rows, options: MakeOptions, classes: Classes | None) -> dict[str, object]:
    """What decides the bytes of the shards, as JSON gives it back."""
    chosen = asdict(options)
    chosen |= chosen.pop("images")
    source = rows.identity() if classes is None else [*rows.identity(), *classes.names]
    chosen["source"] = hashlib.sha256(json.dumps(source).encode()).hexdigest()
    request: dict[str, object] = json.loads(json.dumps(chosen))
    return request


def _stretches(rows: Rows, options: MakeOptions, groups: Groups | None) -> list[Sequence[int] | np.ndarray]:
    """The samples of each shard, none of them empty; without groups each row is a sample."""
    count = len(rows) if groups is None else len(groups)
    order = _order(count, rows.block_rows, options.shuffle)
    if options.num_shards is None:
        cuts = [*range(0, count, options.shard_size), count]
    else:
        num_shards = min(options.num_shards, count)
        cuts = [count * i // num_shards for i in range(num_shards + 1)]
    return [order[start:stop] for start, stop in pairwise(cuts)]


@dataclass(frozen=True)
class _Plan:
    """Which rows each shard holds."""

    stretches: list[Sequence[int] | np.ndarray]
    """The samples of each shard."""
    groups: Groups | None
    """The rows of each sample; None: each row is one."""
    keys: list[str] | None
    """The key of each row; None: the numbers of rows are keys."""

    def job(self, number: int) -> ShardJob:
        """The work on a shard."""
        samples = self.stretches[number]
        if self.groups is None:
            rows: Sequence[np.ndarray] | np.ndarray = np.reshape(samples, (-1, 1))
        else:
            rows = [self.groups.rows(int(sample)) for sample in samples]
        if self.keys is None:
            return ShardJob(number, rows)
        return ShardJob(number, rows, {int(row): self.keys[row] for of_sample in rows for row in of_sample})


def _plan(rows: Rows, options: MakeOptions, folder: Path, on_grouping: Callable[[int, int], None] | None) -> _Plan:
    """What is to be done; the folder is free again if it cannot be.

    Raises:
        InputError: wrong keys, or of the pictures that rows name and may lack none is there.
    """
    groups = group_rows(rows, on_progress=on_grouping) if options.group_rows else None
    keys = None
    try:
        if options.allow_absent:
            _require_pictures(rows)
        if options.key is not None:
            keys = sample_keys(rows, options.key)
            samples = range(len(rows) if groups is None else len(groups))
            firsts = samples if groups is None else [int(groups.rows(sample)[0]) for sample in samples]
            require_different(keys, firsts, rows, options.key)
    except InputError:
        forget(folder)
        raise
    return _Plan(_stretches(rows, options, groups), groups, keys)


def _require_pictures(rows: Rows) -> None:
    """Raises an InputError if none of the files is there that rows name: then the folder is another one."""
    num_missing, path = 0, ""
    for path in rows.files():
        if os.path.exists(path):
            return
        num_missing += 1
    if num_missing:
        raise InputError(
            f"none of the {num_missing:,} pictures that rows name is there, e.g. {path}; give the folder that their "
            "paths start from (--image-folder), or empty the column if no row has a picture"
        )


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
    """What is left out, and what to do."""
    reasons = _by_reason(reports)
    first = next(row for report in reports for row in report.left_out)
    detail = f" ({printable(str(first['detail']))})" if first["detail"] else ""
    limited = num_rows >= _MIN_ROWS_FOR_LIMIT and max_bad < 1
    return RunError(
        f"{sum(reasons.values()):,} of {num_rows:,} rows make no sample{f', more than --max-bad {max_bad}' * limited}: "
        f"{', '.join(f'{reason} {count:,}' for reason, count in reasons.items())}; the first is "
        f"{printable(str(first['name']))}: {first['reason']}{detail}; all are in {folder / REPORT}: "
        "mend them and choose a new --out"
        f"{', or raise --max-bad to go on' * limited}"
    )


def _finish(make: ShardMaker, request: dict[str, object], rows: Rows, reports: list[ShardReport]) -> Made:
    """Writes the index and what became of the rows."""
    names = {make.name(report.shard) for report in reports if report.num_samples}
    if others := sorted({path.name for path in make.folder.glob("[!.]*.tar")} - names):
        raise RunError(
            f"{make.folder} also holds {some_names(others)}, which this command did not make; move them elsewhere and "
            "run the same command again"
        )
    build_index([str(make.folder)], index_dir=None)
    if make.classes is not None:
        if make.classes.several:
            write_file(str(make.folder / DATASET_TYPE), b"multilabel\n")
        write_file(str(make.folder / CLASS_NAMES), "".join(f"{name}\n" for name in make.classes.names).encode())
    extensions: Counter[str] = Counter()
    for report in reports:
        extensions.update(report.extensions)
    reasons = _by_reason(reports)
    if passed_over := rows.passed_over():
        reasons |= Counter(file.reason for file in passed_over)
    made = Made(
        num_shards=len(names),
        num_samples=sum(report.num_samples for report in reports),
        left_out=reasons,
        extensions=dict(extensions.most_common()),
        num_rows=len(rows) + len(passed_over),
        num_joined=sum(report.num_joined for report in reports),
        num_several=sum(report.num_several for report in reports),
        num_classes=0 if make.classes is None else len(make.classes.names),
        num_without_picture=sum(report.num_without_picture for report in reports),
        num_without_text=sum(report.num_without_text for report in reports),
    )
    assert made.num_samples + made.num_joined + sum(made.left_out.values()) == made.num_rows, made
    finish(make.folder, request, asdict(made))
    return made


def _by_reason(reports: Iterable[ShardReport]) -> dict[str, int]:
    counts = Counter(str(row["reason"]) for report in reports for row in report.left_out)
    return dict(counts.most_common())


def _write_report(folder: Path, reports: Iterable[ShardReport], rows: Rows) -> None:
    lines = [line for report in sorted(reports, key=lambda report: report.shard) for line in report.left_out]
    lines += [left_out_line(file, None) for file in rows.passed_over()]
    text = "".join(json_text(redacted(line)) + "\n" for line in lines)
    write_file(str(folder / REPORT), text.encode("utf-8", "replace"))
