"""An index in the making: what is known of every shard, what is not, and the steps from one to the other."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from functools import reduce

import numpy as np

from clipx.config.data import RemoteConfig
from clipx.data.filters.filters import SampleFilter
from clipx.data.index.duplicates import mark_duplicates
from clipx.data.index.folder import IndexedGroup, IndexFolder, find_index_folder
from clipx.data.index.metadata_counts import counts_from_metadata
from clipx.data.index.remote_folder import RemoteFolders
from clipx.data.index.scan import Indexed, Job, count_reasons, index_shards
from clipx.data.index.shard_counts import CountSource, ShardCounts, row_dtype
from clipx.data.index.shard_list import NamedShards, ShardStates
from clipx.data.index.shard_paths import ShardGroup, decoded, found_rows, has_query, packed_bytes
from clipx.data.parallel import in_threads
from clipx.errors import InputError
from clipx.printable import unsigned
from clipx.storage.files import FileState, is_local
from clipx.storage.remote import PIPE

_MAX_SCANNED = 2_000  # new local shards, 40 s per 1,000 samples in each on one core; of more, counts from metadata
_MAX_WARNINGS = 100
_COLUMNS = ["count", "size", "mtime_ns", "source", "left_out"]

log = logging.getLogger(__name__)


class IndexBuilder:
    """What is known of S shards.

    Args:
        filters: what is counted; None means all, or, if the index is only read, what the index was made with.
        may_write: whether an index may be begun beside local shards.

    Raises:
        InputError: an index cannot be read, or was made with another filter.
    """

    def __init__(
        self, named: NamedShards, index_dir: str | None, filters: SampleFilter | None, *, may_write: bool
    ) -> None:
        self.paths = named.paths
        prefixes = list(dict.fromkeys(run.prefix for run in self.paths.runs))
        folders = in_threads(lambda prefix: find_index_folder(prefix, index_dir, may_write=may_write), prefixes)
        by_prefix = dict(zip(prefixes, folders, strict=True))
        self.runs = tuple(
            IndexedGroup(run, start, by_prefix[run.prefix][0], _index_names(run))
            for run, start in zip(self.paths.runs, self.paths.starts, strict=False)
        )
        self._stored_counts = {folder: counts for folder, counts in by_prefix.values() if counts is not None}
        self._filters = filters
        self.filter, self.reasons = ("", ()) if filters is None else (filters.text, filters.reasons)
        if not may_write and self._stored_counts:
            first = next(iter(self._stored_counts.values()))
            self.filter, self.reasons = first.filter, first.reasons
        self._require_own_folder()
        for stored in self._stored_counts.items():
            self._require_fitting_filter(*stored)
        self.rows = np.zeros(len(self.paths), row_dtype(len(self.reasons)))
        """`row_dtype` (S,); the names are in `runs`."""
        self.rows["count"] = -1
        self._changed = np.zeros(len(self.paths), bool)  # the stored counts do not describe these as they are
        self._num_warnings = 0
        self._todo = np.zeros(len(self.paths), bool)  # to be indexed
        self._stored = np.zeros(len(self.paths), bool)  # of these, with offsets here, perhaps of an earlier state

    def look_up(self) -> None:
        """Takes the stored counts.

        Raises:
            InputError: a shard has none.
        """
        for run in self.runs:
            unknown = np.flatnonzero(~self._take_stored(run))
            if len(unknown):
                raise InputError(
                    f"shard {self.paths[run.start + int(unknown[0])]} is not in the index at {run.folder.folder}; "
                    "run `clipx data index`, and set data.index to a folder that every node sees"
                )

    def compare(self, states: ShardStates, *, offsets: bool) -> None:
        """Takes the stored counts of shards that are as they were; the others are to be indexed.

        With `offsets` these are also the shards of which only a count is known.

        Raises:
            InputError: an index beside remote shards does not fit them.
        """
        for run in self.runs:
            known, rows = self._take_stored(run), self.rows[run.shards]
            size, mtime_ns = states.size_S[run.shards], states.mtime_S[run.shards]
            same = _agree(rows["size"], size)
            if run.folder.read_only:  # uploaded with the shards: the times are those of the upload
                _require_fit(run, known, same, rows["size"], size)
                continue
            same &= _agree(rows["mtime_ns"], mtime_ns)
            unscanned = (rows["source"] == CountSource.STATS) | (rows["source"] == CountSource.SIZES)
            if self.filter or not (known & same & ~unscanned).all():
                self._stored[run.shards] = stored = found_rows(run.folder.stored_offsets(), run.names) >= 0
                same &= ~unscanned | ~(stored | offsets)
                if self.filter and is_local(run.folder.folder):
                    same &= stored
            self._todo[run.shards] = ~(known & same)
            rows["size"], rows["mtime_ns"] = size, mtime_ns
        self._changed = self._todo.copy()

    def take_metadata_counts(self, folders: RemoteFolders) -> None:
        """Counts shards by the files beside them if scanning would take long.

        Raises:
            InputError: a store does not answer.
        """
        num_local = sum(int(self._todo[run.shards].sum()) for run in self.runs if is_local(run.run.prefix))
        for run in self.runs:
            prefix, names = run.run
            shards = np.flatnonzero(self._todo[run.shards] & ~self._stored[run.shards]) + run.start
            quick = is_local(prefix) and num_local <= _MAX_SCANNED
            if not len(shards) or quick or prefix == PIPE:
                continue
            counts, source = counts_from_metadata(ShardGroup(prefix, names[shards - run.start]), folders)
            shards, counts = shards[counts >= 0], counts[counts >= 0]
            self.rows["count"][shards], self.rows["source"][shards], self._todo[shards] = counts, source, False
            if len(shards):
                log.info("%d shards in %s are counted by %s", len(shards), prefix, source.name.lower())

    def index(self, remote: RemoteConfig, on_progress: Callable[[int, int], None] | None) -> None:
        """Indexes the shards that are left to do.

        Raises:
            InputError, RunError: see `index_shards`.
        """
        todo, total = np.flatnonzero(self._todo), len(self.paths)
        progress = on_progress or (lambda done, total: None)
        if num_known := total - len(todo):
            progress(num_known, total)
        results = index_shards(self._jobs(remote), num_jobs=len(todo), filters=self._filters)
        for num_done, (shard, result) in enumerate(zip(todo.tolist(), results, strict=True), start=num_known + 1):
            self._take(shard, result)
            progress(num_done, total)
        if (more := self._num_warnings - _MAX_WARNINGS) > 0:
            log.warning("%d more faults of shards; `clipx data check` names them", more)
        if self._filters is not None and self._filters.unique and self._changed.any():
            self._leave_out_duplicates()

    def warn_again(self) -> None:
        """Recalls shards of which something was said when they were indexed: a run must not forget it."""
        faulty = np.flatnonzero((self.rows["source"] == CountSource.FAULTY_SCAN) & ~self._changed).tolist()
        if faulty:
            text = "%d shards lost samples or were odd when they were indexed (first: %s); `clipx data check` says why"
            log.warning(text, len(faulty), self.paths[faulty[0]])

    def save(self) -> None:
        """Stores the counts that have changed; those of other shards of the folders stay.

        Raises:
            InputError: a folder cannot be written, or got an index with another filter meanwhile.
        """
        changed: dict[IndexFolder, list[IndexedGroup]] = {}
        for run in self.runs:
            if self._changed[run.shards].any():
                changed.setdefault(run.folder, []).append(run)
        for folder, runs in changed.items():
            empty = ShardCounts(np.zeros(0, row_dtype(len(self.reasons))), self.filter, self.reasons)
            with folder.locked():  # another process may add its shards
                counts = folder.counts() or empty
                self._require_fitting_filter(folder, counts)
                folder.put_counts(reduce(ShardCounts.updated, map(self._changed_rows, runs), counts))

    def _take_stored(self, run: IndexedGroup) -> np.ndarray:
        """bool (N,): which shards of a run have stored counts; these are taken."""
        counts = self._stored_counts.get(run.folder)
        if counts is None:
            return np.zeros(len(run.names), bool)
        rows = counts.find(run.names)
        known = rows >= 0
        self.rows[run.shards][_COLUMNS][known] = counts.rows[rows[known]][_COLUMNS]
        return known

    def _changed_rows(self, run: IndexedGroup) -> np.ndarray:
        changed = np.flatnonzero(self._changed[run.shards])
        rows = np.zeros(len(changed), row_dtype(len(self.reasons), run.names.dtype.itemsize))
        rows["name"] = run.names[changed]
        rows[_COLUMNS] = self.rows[run.shards][changed][_COLUMNS]
        return rows

    def _jobs(self, remote: RemoteConfig) -> Iterator[Job]:
        for run in self.runs:
            for i in np.flatnonzero(self._todo[run.shards]).tolist():
                row = self.rows[run.start + i]
                state = FileState(int(row["size"]), int(row["mtime_ns"]))
                yield Job(self.paths[run.start + i], state, run.folder, decoded(run.names[i]), remote)

    def _take(self, shard: int, result: Indexed) -> None:
        row = self.rows[shard]
        row["count"], row["left_out"] = result.num_samples, result.left_out
        row["source"] = CountSource.FAULTY_SCAN if result.warnings else CountSource.SCAN
        row["size"] = result.state.size
        for warning in result.warnings:
            self._num_warnings += 1
            if self._num_warnings <= _MAX_WARNINGS:
                log.warning(warning)

    def _leave_out_duplicates(self) -> None:
        shards = [(run.folder, decoded(name)) for run in self.runs for name in run.names.tolist()]
        for shard, reasons in enumerate(mark_duplicates(shards, reason=len(self.reasons))):
            row, left_out = self.rows[shard], count_reasons(reasons, len(self.reasons))
            if left_out != tuple(row["left_out"].tolist()):
                row["left_out"], row["count"] = left_out, int((reasons == 0).sum())
                self._changed[shard] = True

    def _require_own_folder(self) -> None:
        for run in self.runs:
            if self.filter and run.folder.is_beside(run.run.prefix):
                raise InputError(
                    f"the filter {self.filter!r} needs a folder of its own for its index, not {run.folder.folder}: "
                    "beside the shards it would change every run that reads them"
                )

    def _require_fitting_filter(self, folder: IndexFolder, counts: ShardCounts) -> None:
        if counts.filter != self.filter or counts.reasons != self.reasons:
            made, wanted = (f"the filter {text!r}" if text else "no filter" for text in (counts.filter, self.filter))
            raise InputError(
                f"the index at {folder.folder} was made with {made}, not with {wanted}; choose another folder for it"
            )


def _index_names(run: ShardGroup) -> np.ndarray:
    """The names of shards in their index: commands and a web server's queries are too long and odd for files."""
    if not (run.prefix == PIPE or has_query(run)):
        return run.names
    names = run.names.tolist()
    if run.prefix != PIPE:
        names = [unsigned(run.prefix + decoded(name)).encode() for name in names]
    return packed_bytes(hashlib.sha256(name).hexdigest()[:24].encode() for name in names)


def _agree(stored: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Whether the entries of two columns are equal or one is not known."""
    return (stored == now) | (stored == 0) | (now == 0)


def _require_fit(run: IndexedGroup, known: np.ndarray, same: np.ndarray, indexed: np.ndarray, now: np.ndarray) -> None:
    for i in np.flatnonzero(~(known & same))[:1].tolist():
        path = run.run.prefix + decoded(run.run.names[i])
        fault = f"has {now[i]} bytes, {indexed[i]} by" if known[i] else "is not in"
        raise InputError(
            f"shard {path} {fault} the index beside it; run `clipx data index` on the shards with --out "
            f"{run.folder.folder} to renew that, or set data.index to another folder"
        )
