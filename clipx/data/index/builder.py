"""An index in the making: what is known of every shard, what is not, and the steps from one to the other."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from clipx.config.data import RemoteConfig
from clipx.data.filters.filters import Filters
from clipx.data.index.duplicates import Kept, mark_duplicates
from clipx.data.index.folder import IndexFolder, find_index_folder
from clipx.data.index.remote_folder import RemoteFolders
from clipx.data.index.scan import Indexed, Job, index_shards, tally
from clipx.data.index.shard_counts import Catalogue, Origin, Rows
from clipx.data.index.shard_list import NamedShards, ShardStates
from clipx.data.index.shard_paths import Run, decoded, found_rows, packed_bytes
from clipx.data.index.stated_counts import stated_counts
from clipx.errors import InputError
from clipx.storage.files import FileState, is_local
from clipx.storage.pipe import PREFIX as PIPE

_SCANNED_AT_ONCE = 2_000  # new local shards, 40 s per 1,000 samples in each on one core; of more, stated counts
_THREADS = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Place:
    """The shards of one run, and where their index lies."""

    run: Run
    start: int
    """Ordinal of the first shard."""
    folder: IndexFolder
    names: np.ndarray
    """bytes (N,), the shards' names in the index."""

    @property
    def shards(self) -> slice:
        """The ordinals of the shards."""
        return slice(self.start, self.start + len(self.names))


class Draft:
    """What is known of S shards.

    Args:
        named: the shards.
        index_dir: where a person wants the index.
        filters: what is counted; None: all, or, where the index is only read, what the index was made with.
        may_write: whether an index may be begun beside local shards.

    Raises:
        InputError: an index cannot be read.
    """

    def __init__(self, named: NamedShards, index_dir: str | None, filters: Filters | None, *, may_write: bool) -> None:
        self.paths = named.paths
        prefixes = list(dict.fromkeys(run.prefix for run in self.paths.runs))
        with ThreadPoolExecutor(_THREADS) as threads:
            found = threads.map(lambda prefix: find_index_folder(prefix, index_dir, may_write=may_write), prefixes)
            by_prefix = dict(zip(prefixes, found, strict=True))
        self.places = tuple(
            Place(run, start, by_prefix[run.prefix][0], _index_names(run))
            for run, start in zip(self.paths.runs, self.paths.starts, strict=False)
        )
        self._catalogues = {folder: catalogue for folder, catalogue in by_prefix.values() if catalogue is not None}
        self._filters = filters
        self.filter = "" if filters is None else filters.text
        self.reasons = () if filters is None else filters.reasons
        if not may_write and self._catalogues:
            first = next(iter(self._catalogues.values()))
            self.filter, self.reasons = first.filter, first.reasons
        for place in self.places:
            self._refuse_beside(place)
        for folder, catalogue in self._catalogues.items():
            self._refuse_other_filter(folder, catalogue)
        num_shards = len(self.paths)
        self.counts = np.full(num_shards, -1, np.int64)
        self.sizes, self.mtimes = np.zeros(num_shards, np.int64), np.zeros(num_shards, np.int64)
        self.origins = np.zeros(num_shards, np.uint8)
        self.left_out = np.zeros((num_shards, len(self.reasons)), np.int32)
        self._changed = np.zeros(num_shards, bool)
        """Shards that the catalogues do not describe as they are."""
        self._todo = np.zeros(num_shards, bool)
        """Shards that are to be indexed."""
        self._stored = np.zeros(num_shards, bool)
        """Of these, shards with a sidecar on this machine, which may be of an earlier state."""

    def look_up(self) -> None:
        """Takes what the catalogues say.

        Raises:
            InputError: a shard is in none.
        """
        for place in self.places:
            unknown = np.flatnonzero(self._rows(place) < 0)
            if len(unknown):
                raise InputError(
                    f"shard {self.paths[place.start + int(unknown[0])]} is not in the index at {place.folder.folder}; "
                    "run `clipx data index`, and set data.index to a folder that every node sees"
                )

    def compare(self, states: ShardStates, *, offsets: bool) -> None:
        """Takes what the catalogues say of shards that are as they were; the others are to be indexed.

        Args:
            states: of the shards as they are.
            offsets: index also shards of which only a count is known.

        Raises:
            InputError: an index beside remote shards does not fit them.
        """
        for place in self.places:
            rows, part = self._rows(place), place.shards
            known, size, mtime = rows >= 0, states.size_S[part], states.mtime_S[part]
            same = _agree(self.sizes[part], size)
            if place.folder.read_only:  # uploaded with the shards: the times are those of the upload
                _require_fit(place, known, same, self.sizes[part], size)
                continue
            same &= _agree(self.mtimes[part], mtime)
            stated = self.origins[part] != Origin.SCAN
            if self.filter or not (known & same & ~stated).all():
                self._stored[part] = stored = found_rows(place.folder.stored_sidecars(), place.names) >= 0
                same &= ~stated | ~(stored | offsets)
                if self.filter and is_local(place.folder.folder):
                    same &= stored
            self._todo[part] = ~(known & same)
            self.sizes[part], self.mtimes[part] = size, mtime
        self._changed = self._todo.copy()

    def take_stated_counts(self, folders: RemoteFolders) -> None:
        """Counts shards by the files beside them, where scanning would take long.

        Raises:
            InputError: a store does not answer.
        """
        local = sum(int(self._todo[place.shards].sum()) for place in self.places if is_local(place.run.prefix))
        for place in self.places:
            shards = np.flatnonzero(self._todo[place.shards] & ~self._stored[place.shards]) + place.start
            few = is_local(place.run.prefix) and local <= _SCANNED_AT_ONCE
            if not len(shards) or few or place.run.prefix == PIPE:
                continue
            said = stated_counts(Run(place.run.prefix, place.run.names[shards - place.start]), folders)
            shards, counts = shards[said.counts >= 0], said.counts[said.counts >= 0]
            self.counts[shards], self.origins[shards], self._todo[shards] = counts, said.origin, False
            if len(shards):
                log.info("%d shards in %s are counted by %s", len(shards), place.run.prefix, said.origin.name.lower())

    def index(self, remote: RemoteConfig, on_progress: Callable[[int, int], None] | None) -> None:
        """Indexes the shards that are left to do.

        Raises:
            InputError, RunError: as `index_shards`.
        """
        todo, total = np.flatnonzero(self._todo), len(self.paths)
        progress = on_progress or (lambda done, total: None)
        if len(todo) < total:
            progress(total - len(todo), total)
        done = index_shards(self._jobs(remote), num_jobs=len(todo), filters=self._filters)
        for number, (shard, found) in enumerate(zip(todo.tolist(), done, strict=True), start=total - len(todo) + 1):
            self._take(shard, found)
            progress(number, total)
        if self._filters is not None and self._filters.unique and self._changed.any():
            self._leave_out_duplicates()

    def keep(self) -> None:
        """Writes what has changed to the catalogues; rows of other shards of the folders stay.

        Raises:
            InputError: one cannot be written.
        """
        changed: dict[IndexFolder, list[Place]] = {}
        for place in self.places:
            if self._changed[place.shards].any():
                changed.setdefault(place.folder, []).append(place)
        for folder, places in changed.items():
            catalogue = folder.catalogue() or Catalogue.empty(filter=self.filter, reasons=self.reasons)
            for place in places:
                catalogue = catalogue.updated(self._new_rows(place))
            folder.keep_catalogue(catalogue)

    def _rows(self, place: Place) -> np.ndarray:
        """Where the catalogue has the shards of a run, -1 where it has not; takes what it says."""
        catalogue = self._catalogues.get(place.folder)
        if catalogue is None:
            return np.full(len(place.names), -1)
        rows = catalogue.find(place.names)
        known = rows >= 0
        said = catalogue.rows.take(rows[known])
        for mine, its in (
            (self.counts, said.counts),
            (self.sizes, said.sizes),
            (self.mtimes, said.mtimes),
            (self.origins, said.origins),
            (self.left_out, said.left_out),
        ):
            mine[place.shards][known] = its
        return rows

    def _jobs(self, remote: RemoteConfig) -> Iterator[Job]:
        for place in self.places:
            for i in np.flatnonzero(self._todo[place.shards]).tolist():
                shard = place.start + i
                state = FileState(int(self.sizes[shard]), int(self.mtimes[shard]))
                yield Job(self.paths[shard], state, place.folder, decoded(place.names[i]), remote)

    def _take(self, shard: int, found: Indexed) -> None:
        self.counts[shard], self.origins[shard], self.left_out[shard] = found.num_samples, Origin.SCAN, found.left_out
        self.sizes[shard] = found.state.size
        if found.warning is not None:
            log.warning(found.warning)

    def _leave_out_duplicates(self) -> None:
        shards = [Kept(place.folder, decoded(name)) for place in self.places for name in place.names.tolist()]
        for shard, reasons in enumerate(mark_duplicates(shards, reason=len(self.reasons))):
            left_out = tally(reasons, len(self.reasons))
            if left_out != tuple(self.left_out[shard].tolist()):
                self.left_out[shard], self.counts[shard] = left_out, int((reasons == 0).sum())
                self._changed[shard] = True

    def _new_rows(self, place: Place) -> Rows:
        changed = np.flatnonzero(self._changed[place.shards])
        columns = (self.counts, self.sizes, self.mtimes, self.origins, self.left_out)
        return Rows(place.names[changed], *(column[place.shards][changed] for column in columns))

    def _refuse_beside(self, place: Place) -> None:
        if self.filter and place.folder.is_beside(place.run.prefix):
            raise InputError(
                f"the filter {self.filter!r} needs a folder of its own for its index, not {place.folder.folder}: "
                "beside the shards it would change every run that reads them"
            )

    def _refuse_other_filter(self, folder: IndexFolder, catalogue: Catalogue) -> None:
        if catalogue.filter != self.filter:
            made, wanted = (f"the filter {text!r}" if text else "no filter" for text in (catalogue.filter, self.filter))
            raise InputError(
                f"the index at {folder.folder} was made with {made}, not with {wanted}; choose another folder for it"
            )


def _index_names(run: Run) -> np.ndarray:
    """The names under which shards stand in their index: commands are too long and odd for files."""
    if run.prefix != PIPE:
        return run.names
    return packed_bytes(hashlib.sha256(command).hexdigest()[:24].encode() for command in run.names.tolist())


def _agree(known: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Where two columns are equal or one does not know."""
    return (known == now) | (known == 0) | (now == 0)


def _require_fit(place: Place, known: np.ndarray, same: np.ndarray, indexed: np.ndarray, now: np.ndarray) -> None:
    for i in np.flatnonzero(~(known & same))[:1].tolist():
        path = place.run.prefix + decoded(place.run.names[i])
        fault = f"has {now[i]} bytes, {indexed[i]} by" if known[i] else "is not in"
        raise InputError(
            f"shard {path} {fault} the index beside it; run `clipx data index` on the shards with --out "
            f"{place.folder.folder} to renew that, or set data.index to another folder"
        )
