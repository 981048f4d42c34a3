"""Indexes single shards: scans a tar, judges its samples, keeps its sidecar; many of them at once."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np

from clipx.config.data import RemoteConfig
from clipx.data.filters.filters import Filters
from clipx.data.index.folder import IndexFolder
from clipx.data.index.offsets import NotTarError, Sidecar, TarScan, Verdict, scan_tar, sidecar_parts
from clipx.errors import InputError, RunError
from clipx.storage.failures import mend
from clipx.storage.files import FileState, is_local, open_ranges
from clipx.storage.remote import DEFAULTS

_THREADS = 16  # a scan over a network waits more than it computes
_MANY_SCANNED, _MANY_JUDGED = 256, 32  # shards from which on it pays to start processes, which takes seconds


class Job(NamedTuple):
    """A shard that is to be indexed."""

    path: str
    state: FileState
    """Zeros where not known."""
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
    warning: str | None


class _Scanned(NamedTuple):
    scan: TarScan
    state: FileState
    verdict: Verdict | None


def index_shards(jobs: Iterable[Job], *, num_jobs: int, filters: Filters | None) -> Iterator[Indexed]:
    """Indexes shards in parallel and yields what became of them in their order; those that were done before are quick.

    Local shards, and all with filters, cost computing, so that they go to processes; remote headers cost waiting.

    Raises:
        InputError: a shard that is no tar or cannot be read, or an index that cannot be written.
        RunError: a process died.
    """
    waiting = iter(jobs)
    first = next(waiting, None)
    if first is None:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    many = num_jobs >= (_MANY_SCANNED if filters is None else _MANY_JUDGED)
    if cores > 1 and many and (filters is not None or is_local(first.path)):
        context = get_context("forkserver")  # a fork would not survive threads, a spawn imports everything each time
        context.set_forkserver_preload([__name__])
        pool: Executor = ProcessPoolExecutor(cores, mp_context=context, initializer=_start, initargs=(filters,))
        action: Callable[[Job], Indexed] = _run
    else:
        pool, action = ThreadPoolExecutor(_THREADS), partial(index_shard, filters=filters)
    under_way: deque[Future[Indexed]] = deque([pool.submit(action, first)])
    try:
        for job in waiting:
            under_way.append(pool.submit(action, job))
            if len(under_way) >= 4 * max(cores, _THREADS):
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise RunError(
            "a process that indexes shards died, for want of memory or because a script calls this outside of "
            "`if __name__ == '__main__':`; mend that and start again, it goes on where it was"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def index_shard(job: Job, filters: Filters | None) -> Indexed:
    """Brings the sidecar of a shard to the shard's present state.

    Raises:
        InputError: as `index_shards`.
    """
    num_reasons = 0 if filters is None else len(filters.reasons)
    kept = kept_sidecar(job.folder, job.name)
    filter_id = 0 if filters is None else filters.id
    if kept is not None and kept.filter_id == filter_id and is_same(kept.shard, job.state):
        if not is_local(job.folder.folder):  # kept here, but perhaps not there
            job.folder.put_sidecar(job.name, kept.with_reasons(kept.reasons))
        return Indexed(kept.num_samples, kept.shard, tally(kept.reasons, num_reasons), None)
    try:
        scan, state, verdict = _scan(job, filters)
    except NotTarError as error:
        raise InputError(f"shard {job.path} {error}") from None
    except OSError as error:
        raise InputError(f"shard {job.path} cannot be read: {error.strerror or error}; {mend(error)}") from error
    job.folder.put_sidecar(job.name, sidecar_parts(scan, state, verdict))
    warning = None
    if scan.damage and scan.keys:
        warning = f"shard {job.path} {scan.damage}; it counts with the {len(scan.keys)} samples before that"
    if verdict is None:
        return Indexed(len(scan.keys), state, (), warning)
    return Indexed(int((verdict.reasons == 0).sum()), state, tally(verdict.reasons, num_reasons), warning)


def scan_to_sidecar(path: str, folder: IndexFolder, name: str, remote: RemoteConfig = DEFAULTS) -> None:
    """Makes the sidecar of a shard whose count alone was known, in the index or, where that is read only, in the cache.

    Raises:
        OSError: the shard cannot be read.
        RunError: it is no tar file.
    """
    try:
        scan, state, _ = _scan(Job(path, FileState(0, 0), folder, name, remote), None)
    except NotTarError as error:
        raise RunError(f"shard {path} {error}") from None
    folder.keep_sidecar(name, sidecar_parts(scan, state))


def kept_sidecar(folder: IndexFolder, name: str) -> Sidecar | None:
    """The sidecar that lies here, or None where it is absent or broken."""
    try:
        return Sidecar(folder.sidecar(name))
    except (OSError, ValueError):
        return None


def is_same(known: FileState, now: FileState) -> bool:
    """Whether nothing that is known tells the two versions of a shard apart."""
    return all(0 in pair or pair[0] == pair[1] for pair in zip(known, now, strict=True))


def tally(reasons: np.ndarray, num_reasons: int) -> tuple[int, ...]:
    """Samples per reason (uint8 (N,), 0 for those that pass)."""
    return tuple(np.bincount(reasons, minlength=num_reasons + 1)[1 : num_reasons + 1].tolist()) if num_reasons else ()


def _scan(job: Job, filters: Filters | None) -> _Scanned:
    file = open_ranges(job.path, sequential=True, remote=job.remote)
    try:
        scan = scan_tar(file)
        verdict = None if filters is None else filters.judge(job.path, file, scan)
        return _Scanned(scan, FileState(file.size, job.state.mtime_ns), verdict)
    finally:
        file.close()


_filters: Filters | None = None  # of this process


def _start(filters: Filters | None) -> None:
    global _filters
    _filters = filters
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the others


def _run(job: Job) -> Indexed:
    return index_shard(job, _filters)
