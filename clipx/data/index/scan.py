"""Indexes single shards: scans a tar, filters its samples, keeps its offsets; many of them at once."""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from clipx.config.data import RemoteConfig
from clipx.data.filters import FilterResult
from clipx.data.filters.filters import SampleFilter
from clipx.data.index.folder import IndexFolder
from clipx.data.index.offsets import ShardOffsets, offsets_to_bytes
from clipx.data.parallel import in_processes, in_threads
from clipx.errors import InputError, RunError
from clipx.storage.failures import hint
from clipx.storage.files import FileState, is_local, open_ranges
from clipx.storage.remote import DEFAULTS
from clipx.storage.tar import TarScan, scan_tar
from clipx.storage.tar_headers import NotTarError

_MANY_SCANNED, _MANY_FILTERED = 256, 32  # shards from which on it pays to start processes, which takes seconds

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """A shard that is to be indexed."""

    path: str
    state: FileState
    """Zeros for what is not known."""
    folder: IndexFolder
    name: str
    """Its name in the index."""
    remote: RemoteConfig = DEFAULTS
    """Timeout and retries of a remote one."""


class Indexed(NamedTuple):
    """What became of a job."""

    num_samples: int
    """Samples, of a filtered index those that pass."""
    state: FileState
    left_out: tuple[int, ...]
    """Samples that do not pass, per reason of the filter."""
    warnings: tuple[str, ...]


def index_shards(jobs: Iterable[Job], *, num_jobs: int, filters: SampleFilter | None) -> Iterator[Indexed]:
    """Indexes shards in parallel and yields what became of them in their order; those that were done before are quick.

    Local shards, and all with filters, cost computing, so that they go to processes; remote headers cost waiting.

    Raises:
        InputError: a shard that is no tar or cannot be read, or an index that cannot be written.
        RunError: a process died.
    """
    rest = iter(jobs)
    if (first := next(rest, None)) is None:
        return
    work, jobs = IndexShard(filters), chain([first], rest)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    many = num_jobs >= (_MANY_SCANNED if filters is None else _MANY_FILTERED)
    if cores > 1 and many and (filters is not None or is_local(first.path)):
        yield from in_processes(work, jobs, workers=cores)
    else:
        yield from in_threads(work, jobs)


@dataclass(frozen=True)
class IndexShard:
    """What each process or thread does."""

    filters: SampleFilter | None

    def __call__(self, job: Job) -> Indexed:
        """Brings the offsets of a shard to the shard's present state.

        Raises:
            InputError: see `index_shards`.
        """
        num_reasons, filter_id = (0, 0) if self.filters is None else (len(self.filters.reasons), self.filters.id)
        stored = next(job.folder.open_offsets(job.name), None)
        if stored is not None and stored.filter_id == filter_id and _agrees(stored.shard, job.state):
            if not is_local(job.folder.folder):  # stored here, but perhaps not there
                job.folder.put_offsets(job.name, stored.to_bytes(stored.reasons))
            return Indexed(stored.num_samples, stored.shard, count_reasons(stored.reasons, num_reasons), ())
        try:
            scan, state, result = _scan(job, self.filters)
        except NotTarError as error:
            raise InputError(f"shard {job.path} {error}") from None
        except OSError as error:
            raise InputError(f"shard {job.path} cannot be read: {error.strerror or error}; {hint(error)}") from error
        if split := [fault.text for fault in scan.faults() if fault.kind == "split samples"]:
            raise InputError(f"shard {job.path} {split[0]}")
        job.folder.put_offsets(job.name, offsets_to_bytes(scan, state, result))
        reasons = np.zeros(len(scan.keys), np.uint8) if result is None else result.reasons
        return Indexed(
            int((reasons == 0).sum()), state, count_reasons(reasons, num_reasons), _warnings(job, scan, state)
        )


def scan_to_offsets(path: str, folder: IndexFolder, name: str, remote: RemoteConfig = DEFAULTS) -> ShardOffsets:
    """Makes the offsets of a shard of which only the count was known, in the cache if the index is read only.

    What is wrong with the shard is logged: a run that has begun goes on, or ends because the count is another.

    Raises:
        OSError: the shard cannot be read.
        RunError: it is no tar file.
    """
    try:
        job = Job(path, FileState(0, 0), folder, name, remote)
        scan, state, _ = _scan(job, None)
    except NotTarError as error:
        raise RunError(f"shard {path} {error}") from None
    for warning in _warnings(job, scan, state):
        log.warning(warning)
    return ShardOffsets(folder.keep_offsets(name, offsets_to_bytes(scan, state)))


def confirm_offsets(
    path: str, folder: IndexFolder, name: str, old: ShardOffsets, remote: RemoteConfig
) -> ShardOffsets | None:
    """Filtered offsets without a checksum, with one if they are what the shard's headers say; None if they are not.

    Raises:
        OSError: the shard cannot be read.
        RunError: it is no tar file.
    """
    try:
        scan, _, _ = _scan(Job(path, FileState(0, 0), folder, name, remote), None)
    except NotTarError as error:
        raise RunError(f"shard {path} {error}") from None
    if len(scan.keys) != len(old.reasons):
        return None
    hashes = old.hashes if len(old.hashes) else None
    content = offsets_to_bytes(scan, old.shard, FilterResult(old.filter_id, old.reasons, hashes))
    return ShardOffsets(folder.keep_offsets(name, content)) if old.is_as(content) else None


def _warnings(job: Job, scan: TarScan, state: FileState) -> tuple[str, ...]:
    """What is wrong with a shard, a line each; an empty file is named by the index."""
    if scan.damage and not state.size:
        return ()
    counts = f"; it counts with the {len(scan.keys)} samples before that"
    return tuple(f"shard {job.path} {text}{counts if kind == 'damaged shard' else ''}" for kind, text in scan.faults())


def count_reasons(reasons: np.ndarray, num_reasons: int) -> tuple[int, ...]:
    """Samples per reason; `reasons` is uint8 (N,), 0 for those that pass."""
    return tuple(np.bincount(reasons, minlength=num_reasons + 1)[1 : num_reasons + 1].tolist())


def _agrees(stored: FileState, now: FileState) -> bool:
    """Whether nothing that is known tells the two versions of a shard apart."""
    return all(0 in pair or pair[0] == pair[1] for pair in zip(stored, now, strict=True))


def _scan(job: Job, filters: SampleFilter | None) -> tuple[TarScan, FileState, FilterResult | None]:
    file = open_ranges(job.path, sequential=True, remote=job.remote)
    try:
        scan = scan_tar(file)
        result = None if filters is None else filters.evaluate(job.path, file, scan)
        return scan, FileState(file.size, job.state.mtime_ns), result
    finally:
        file.close()
