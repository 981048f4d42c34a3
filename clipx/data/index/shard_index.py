"""Which shards there are and how many samples each holds: the only thing that the data order is made of.

`build_index` (rank 0 for all ranks, or `clipx data index`) indexes shards that are new or changed; `load_index` only
reads, one catalogue per folder of shards. Where offsets of samples stand, a sidecar per shard, is known to
`ShardIndex.sidecar` alone.
"""

import hashlib
import json
import logging
import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from clipx.config.data import RemoteConfig
from clipx.data.filters.filters import Filters, filter_id
from clipx.data.index.builder import Draft, Place
from clipx.data.index.folder import IndexFolder
from clipx.data.index.offsets import Sidecar
from clipx.data.index.remote_folder import RemoteFolders
from clipx.data.index.scan import scan_to_sidecar
from clipx.data.index.shard_counts import Origin
from clipx.data.index.shard_list import name_shards, shard_states
from clipx.data.index.shard_paths import ShardPaths, decoded
from clipx.errors import InputError, RunError
from clipx.storage.pipe import PREFIX as PIPE
from clipx.storage.remote import DEFAULTS

_NAMES_AT_ONCE = 1 << 14
_EMPTY_NAMED = 10
_IN_COMMAND = re.compile(r"[^/\s'\"]+\.tar")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The shards of a run in their original order."""

    paths: ShardPaths
    """Local paths and fsspec addresses."""
    counts: np.ndarray
    """int64 (S,), samples of each shard; of a filtered index those that pass."""
    filter: str
    """What passes, "" for all."""
    left_out: Mapping[str, int]
    """Samples that do not pass, per reason."""
    _sizes: np.ndarray
    """int64 (S,), bytes of each shard when it was indexed; 0 where not known."""
    _origins: np.ndarray
    """uint8 (S,), `Origin` of each count."""
    _places: tuple[Place, ...]
    """Of each run of `paths`."""

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return int(self.counts.sum())

    def fingerprint(self) -> str:
        """SHA-256 over base names and counts in order, and the filter: equal for equal sets, wherever they lie."""
        text = hashlib.sha256()
        text.update(b"[")
        names = map(_base_name, self.paths)
        for start in range(0, len(self.paths), _NAMES_AT_ONCE):
            counts = self.counts[start : start + _NAMES_AT_ONCE].tolist()
            rows = json.dumps(list(zip(islice(names, len(counts)), counts, strict=True)))
            text.update((", " if start else "").encode() + rows[1:-1].encode())
        text.update(b"]" + self.filter.encode())
        return text.hexdigest()

    def sidecar(self, shard: int, *, remote: RemoteConfig = DEFAULTS) -> Sidecar:
        """Opens the sidecar of the shard with this ordinal; fetches it where the index is remote, makes it where only
        a count was known.

        Raises:
            OSError: it, or the shard, cannot be read.
            RunError: it is damaged or gone, or does not fit the shard.
        """
        folder, name = self._where(shard)
        sidecar = self._open(shard)
        if sidecar is None and folder.fetch_sidecar(name, remote):
            sidecar = self._open(shard)
        if sidecar is None and not self.filter:
            scan_to_sidecar(self.paths[shard], folder, name, remote)
            sidecar = Sidecar(self.sidecar_path(shard))
        if sidecar is None:
            raise RunError(f"{self.sidecar_path(shard)} is gone or of another filter; run `clipx data index` again")
        self._require_fit(shard, sidecar)
        return sidecar

    def _require_fit(self, shard: int, sidecar: Sidecar) -> None:
        path, size, count = self.paths[shard], self._sizes[shard], self.counts[shard]
        origin = Origin(self._origins[shard]).file_of(posixpath.basename(path))
        if size not in (0, sidecar.shard.size):
            raise RunError(
                f"shard {path} has {sidecar.shard.size} bytes, {size} when it was indexed; run `clipx data index` again"
            )
        if sidecar.num_samples != count:
            raise RunError(
                f"shard {path} holds {sidecar.num_samples} samples, its index (from {origin}) says {count}; "
                "run `clipx data index` again"
            )

    def sidecar_path(self, shard: int) -> Path:
        """Where the sidecar of a shard lies on this machine, once it was made or fetched."""
        folder, name = self._where(shard)
        return folder.sidecar(name)

    def _where(self, shard: int) -> tuple[IndexFolder, str]:
        number, place = self.paths.locate(shard)
        return self._places[number].folder, decoded(self._places[number].names[place])

    def _open(self, shard: int) -> Sidecar | None:
        """The sidecar that lies on this machine, None where it is absent or not of the shard that was indexed."""
        path = self.sidecar_path(shard)
        try:
            sidecar = Sidecar(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error}); delete it and run the same command again") from error
        same_size = self._sizes[shard] in (0, sidecar.shard.size)
        return sidecar if same_size and sidecar.filter_id == filter_id(self.filter) else None


def build_index(
    patterns: Sequence[str],
    *,
    index_dir: str | os.PathLike[str] | None = None,
    filters: Filters | None = None,
    offsets: bool = False,
    remote: RemoteConfig = DEFAULTS,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardIndex:
    """Indexes shards that are new or whose size or time changed.

    The index of a folder lies in `index_dir`, else beside the shards, else, where that folder cannot be written, under
    `$CLIPX_CACHE` (default ~/.cache/clipx). Files are replaced whole, so two runs may index at the same time; one that
    was interrupted goes on where it was. Headers of shards are scanned, on all cores; but of remote shards, and of more
    than 2,000 new local ones, the counts of NNNNN_stats.json or sizes.json are taken where these are present, and a
    shard is scanned when it is first opened.

    Args:
        patterns: as for `expand_shards`.
        index_dir: folder or address for the index.
        filters: what is counted; None: what the index in `index_dir` was made with.
        offsets: scan also the shards whose counts are stated.
        remote: timeout and retries of scans over a network.
        on_progress: called with (shards done, shards).

    Raises:
        InputError: no shard, a shard that is no tar or cannot be read, no sample in all shards, an index that cannot
            be written, that lies beside remote shards and does not fit them, or that was made with another filter.
        RunError: a process that indexes died.
    """
    directory = None if index_dir is None else os.fspath(index_dir)
    filters = _settled(filters, directory)
    folders = RemoteFolders()
    named = name_shards(patterns, folders)
    states = shard_states(named, folders)
    draft = Draft(named, directory, filters, may_write=True)
    draft.compare(states, offsets=offsets)
    if filters is not None and directory is not None:
        filters.save(directory)
    if filters is None and not offsets:
        draft.take_stated_counts(folders)
    draft.index(remote, on_progress)
    draft.keep()
    index = _finished(draft)
    _warn_of_empty(index)
    return index


def load_index(patterns: Sequence[str], *, index_dir: str | os.PathLike[str] | None = None) -> ShardIndex:
    """The index that `build_index` made with the same arguments; reads one file per folder of shards.

    Raises:
        InputError: as `build_index`, or when a shard is not indexed where this process looks.
    """
    named = name_shards(patterns, RemoteFolders())
    draft = Draft(named, None if index_dir is None else os.fspath(index_dir), None, may_write=False)
    draft.look_up()
    return _finished(draft)


def _settled(filters: Filters | None, index_dir: str | None) -> Filters | None:
    """The filter of an index: what is asked for, or what it was made with.

    Raises:
        InputError: these are two, or a filtered index would lie where every run reads it.
    """
    if index_dir is None:
        if filters is not None:
            raise InputError(
                f"the filter {filters.text!r} needs a folder for its index (--out, index_dir): beside the shards it "
                "would change every run that reads them"
            )
        return None
    kept = Filters.load(index_dir)
    if kept is not None and filters is not None and kept.text != filters.text:
        raise InputError(
            f"the index in {index_dir} has the filter {kept.text!r}, not {filters.text!r}; choose another folder"
        )
    return filters or kept


def _finished(draft: Draft) -> ShardIndex:
    left_out = dict(zip(draft.reasons, draft.left_out.sum(axis=0, dtype=np.int64).tolist(), strict=True))
    if not draft.counts.any():
        shards = f"the {len(draft.paths)} shards (first: {draft.paths[0]})"
        if not any(left_out.values()):
            raise InputError(f"{shards} hold no samples; give shards with samples")
        why = ", ".join(f"{reason}: {number}" for reason, number in left_out.items() if number)
        raise InputError(
            f"no sample of {shards} passes the filter ({why}); loosen it, with another folder for the index"
        )
    return ShardIndex(
        draft.paths,
        draft.counts,
        draft.filter,
        left_out,
        draft.sizes,
        draft.origins,
        draft.places,
    )


def _warn_of_empty(index: ShardIndex) -> None:
    empty = np.flatnonzero(index.counts == 0).tolist()
    passing = " that pass the filter" if index.filter else ""
    for shard in empty[:_EMPTY_NAMED]:
        log.warning("shard %s holds no samples%s", index.paths[shard], passing)
    if len(empty) > _EMPTY_NAMED:
        log.warning("%d more shards hold no samples%s", len(empty) - _EMPTY_NAMED, passing)


def _base_name(path: str) -> str:
    """The name of a shard wherever it lies; of a command the tar file that it names."""
    if path.startswith(PIPE) and (named := _IN_COMMAND.findall(path)):
        return named[-1]
    return posixpath.basename(path)
