"""Which shards there are and how many samples each holds: the only thing that the data order is made of.

`build_index` (rank 0 for all ranks, or `clipx data index`) indexes shards that are new or changed; `load_index` only
reads, one file of shard counts per folder of shards. Where the offsets of samples stand, a file per shard, is known to
`ShardIndex.offsets` alone.
"""

import hashlib
import json
import logging
import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipx.config.data import RemoteConfig
from clipx.config.paths import expand_home
from clipx.data.filters import filter_id
from clipx.data.index.folder import IndexedGroup, IndexFolder
from clipx.data.index.offsets import ShardOffsets
from clipx.data.index.remote_folder import RemoteFolders
from clipx.data.index.shard_counts import CountSource
from clipx.data.index.shard_list import name_shards, shard_states
from clipx.data.index.shard_paths import ShardPaths, decoded
from clipx.errors import InputError, RunError
from clipx.printable import redact, unsigned
from clipx.storage.files import is_local
from clipx.storage.remote import DEFAULTS, PIPE

_NAMES_AT_ONCE = 1 << 14
_EMPTY_NAMED = 10
_IN_COMMAND = re.compile(r"[^/\s'\"]+\.tar")

if TYPE_CHECKING:  # building an index takes much that reading one does not
    from clipx.data.filters.filters import SampleFilter
    from clipx.data.index.builder import IndexBuilder

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
    """int64 (S,), bytes of each shard when it was indexed; 0 if not known."""
    _sources: np.ndarray
    """uint8 (S,), `CountSource` of each count."""
    _runs: tuple[IndexedGroup, ...]
    """One per run of `paths`."""

    @property
    def sizes(self) -> np.ndarray:
        """int64 (S,), bytes of each shard when it was indexed; 0 if not known."""
        return self._sizes

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return int(self.counts.sum())

    def locate(self, sample: int) -> tuple[int, int]:
        """The ordinal of the shard that holds a sample of this index, and the sample's place there."""
        shard = int(np.searchsorted(self._ends_S, sample, side="right"))
        return shard, sample - int(self._ends_S[shard] - self.counts[shard])

    @cached_property
    def _ends_S(self) -> np.ndarray:  # noqa: N802
        return np.cumsum(self.counts)

    def fingerprint(self) -> str:
        """SHA-256 over base names and counts in order, and the filter: equal for equal sets, wherever they lie."""
        text = hashlib.sha256()
        text.update(b"[")
        names = map(base_name, self.paths)
        for start in range(0, len(self.paths), _NAMES_AT_ONCE):
            counts = self.counts[start : start + _NAMES_AT_ONCE].tolist()
            rows = json.dumps(list(zip(islice(names, len(counts)), counts, strict=True)))
            text.update((", " if start else "").encode() + rows[1:-1].encode())
        text.update(b"]" + self.filter.encode())
        return text.hexdigest()

    def offsets(self, shard: int, *, remote: RemoteConfig = DEFAULTS) -> ShardOffsets:
        """Opens the offsets of the shard with this ordinal.

        They are fetched if the index is remote, and made if only a count was known or if they are damaged.

        Raises:
            OSError: they, or the shard, cannot be read.
            RunError: they are damaged or gone and of a filter, or do not fit the shard.
        """
        folder, name = self._where(shard)
        offsets = self._open(shard)
        if offsets is None and folder.fetch_offsets(name, remote):
            offsets = self._open(shard)
        if offsets is not None and not offsets.vouched:
            from clipx.data.index.scan import confirm_offsets

            offsets = confirm_offsets(self.paths[shard], folder, name, offsets, remote)
        if offsets is None and not self.filter:
            from clipx.data.index.scan import scan_to_offsets

            offsets = scan_to_offsets(self.paths[shard], folder, name, remote)
        if offsets is None:
            raise RunError(
                f"{self.offsets_path(shard)} is gone, damaged or of another filter; delete it if it is there, and run "
                "`clipx data index` again"
            )
        self._require_fit(shard, offsets)
        return offsets

    def offsets_path(self, shard: int) -> Path:
        """Where the offsets of a shard lie on this machine, once they were made or fetched."""
        folder, name = self._where(shard)
        return folder.offsets_path(name)

    def _require_fit(self, shard: int, offsets: ShardOffsets) -> None:
        path, size, count = self.paths[shard], self._sizes[shard], self.counts[shard]
        source = CountSource(self._sources[shard]).file_of(posixpath.basename(path))
        if size not in (0, offsets.shard.size):
            raise RunError(
                f"shard {path} has {offsets.shard.size} bytes, {size} when it was indexed; run `clipx data index` again"
            )
        if offsets.num_samples != count:
            raise RunError(
                f"shard {path} holds {offsets.num_samples} samples, its index (from {source}) says {count}; "
                "run `clipx data index` again"
            )

    def _where(self, shard: int) -> tuple[IndexFolder, str]:
        run, place = self.paths.locate(shard)
        return self._runs[run].folder, decoded(self._runs[run].names[place])

    def _open(self, shard: int) -> ShardOffsets | None:
        """The offsets that lie on this machine, None if they are absent or not of the shard that was indexed."""
        folder, name = self._where(shard)
        size, wanted = self._sizes[shard], filter_id(self.filter)
        found = folder.open_offsets(name)
        return next((o for o in found if size in (0, o.shard.size) and o.filter_id == wanted), None)


def build_index(
    patterns: Sequence[str],
    *,
    index_dir: str | os.PathLike[str] | None = None,
    filters: "SampleFilter | None" = None,
    offsets: bool = False,
    remote: RemoteConfig = DEFAULTS,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardIndex:
    """Indexes shards that are new or whose size or time changed.

    The index of a folder lies in `index_dir`, else beside the shards, else, if that folder cannot be written, under
    `$CLIPX_CACHE` (default ~/.cache/clipx). Files are replaced whole, so two runs may index at the same time; one that
    was interrupted goes on where it was. Headers of shards are scanned, on all cores; but of remote shards, and of more
    than 2,000 new local ones, the counts of NNNNN_stats.json or sizes.json are taken if these are present, and a
    shard is scanned when it is first opened.

    Args:
        patterns: see `expand_shards`.
        index_dir: folder or address for the index.
        filters: what is counted; None means what the index in `index_dir` was made with.
        offsets: scan also the shards whose counts are stated.
        on_progress: called with (shards done, shards).

    Raises:
        InputError: no shard, a shard that is no tar or cannot be read, no sample in all shards, an index that cannot
            be written, that lies beside remote shards and does not fit them, or that was made with another filter.
        RunError: a process that indexes died.
    """
    directory = _directory(index_dir)
    filters = _resolve_filter(filters, directory)
    folders = RemoteFolders()
    named = name_shards(patterns, folders)
    states = shard_states(named, folders)
    from clipx.data.index.builder import IndexBuilder

    builder = IndexBuilder(named, directory, filters, may_write=True)
    builder.compare(states, offsets=offsets)
    if filters is not None and directory is not None:
        filters.save(directory)
    if filters is None and not offsets:
        builder.take_metadata_counts(folders)
    builder.warn_again()
    builder.index(remote, on_progress)
    builder.save()
    index = _finished(builder)
    _warn_of_empty(index)
    return index


def load_index(patterns: Sequence[str], *, index_dir: str | os.PathLike[str] | None = None) -> ShardIndex:
    """The index that `build_index` made with the same arguments; reads one file per folder of shards.

    Raises:
        InputError: see `build_index`; or a shard is not indexed where this process looks.
    """
    named = name_shards(patterns, RemoteFolders())
    directory = _directory(index_dir)
    from clipx.data.index.builder import IndexBuilder

    builder = IndexBuilder(named, directory, None, may_write=False)
    builder.look_up()
    return _finished(builder)


def _directory(index_dir: str | os.PathLike[str] | None) -> str | None:
    """The folder as programs know it: `~` is a word of shells alone."""
    if index_dir is None:
        return None
    path = os.fspath(index_dir)
    return expand_home(path) if is_local(path) else path


def _resolve_filter(filters: "SampleFilter | None", index_dir: str | None) -> "SampleFilter | None":
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
    from clipx.data.filters.filters import SampleFilter

    stored = SampleFilter.load(index_dir)
    if filters is not None:
        filters.require_same(stored, index_dir)
    return filters or stored


def _finished(builder: "IndexBuilder") -> ShardIndex:
    paths, rows = builder.paths, builder.rows
    left_out = dict(zip(builder.reasons, rows["left_out"].sum(axis=0, dtype=np.int64).tolist(), strict=True))
    if not rows["count"].any():
        shards = f"the {len(paths)} shards (first: {paths[0]})"
        if not any(left_out.values()):
            raise InputError(f"{shards} hold no samples; give shards with samples")
        why = ", ".join(f"{reason}: {count}" for reason, count in left_out.items() if count)
        raise InputError(
            f"no sample of {shards} passes the filter ({why}); loosen it, with another folder for the index"
        )
    counts, sizes, sources = (np.ascontiguousarray(rows[name]) for name in ("count", "size", "source"))
    return ShardIndex(paths, counts, builder.filter, left_out, sizes, sources, builder.runs)


def _warn_of_empty(index: ShardIndex) -> None:
    empty = np.flatnonzero(index.counts == 0).tolist()
    passing = " that pass the filter" if index.filter else ""
    for shard in empty[:_EMPTY_NAMED]:
        log.warning("shard %s holds no samples%s", index.paths[shard], passing)
    if len(empty) > _EMPTY_NAMED:
        log.warning("%d more shards hold no samples%s", len(empty) - _EMPTY_NAMED, passing)


def base_name(path: str) -> str:
    """The name of a shard wherever it lies; of a command the tar file that it names."""
    if path.startswith(PIPE) and (named := _IN_COMMAND.findall(path)):
        return named[-1]
    return posixpath.basename(redact(unsigned(path)))
