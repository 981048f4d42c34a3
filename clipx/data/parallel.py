"""The same work on many things, in processes or threads, results in the order of the things."""

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context, resource_tracker
from typing import Any, TypeVar

from clipx.errors import RunError
from clipx.host import own_cores, share_of_cores

Job = TypeVar("Job")
Result = TypeVar("Result")

THREADS = 16
"""For work that waits for a network more than it computes."""
_AHEAD = 4  # jobs per process or thread that are handed out before the first result is taken

_work: Callable[[Any], Any] | None = None  # of this process


def num_cores() -> int:
    """Cores that this process may use; a container may have less than the machine."""
    cores = own_cores()
    return max(1, int(share_of_cores(cores, [cores])))


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """Yields `work(job)` for each job, in their order, from `THREADS` threads.

    Raises:
        Exception: whatever `work` raises; jobs that were not begun are dropped.
    """
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from begun_ahead(lambda job: pool.submit(work, job).result, jobs, ahead=_AHEAD * THREADS)
    finally:
        pool.shutdown(cancel_futures=True)


def in_processes(work: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int) -> Iterator[Result]:
    """Yields `work(job)` for each job, in their order, from processes.

    `work` is sent to each process once, so it must pickle. Jobs are taken when their turn comes near, so there may be
    very many. One worker works in this process, as does a single job.

    Raises:
        RunError: a process died.
        Exception: whatever `work` raises; jobs that were not begun are dropped.
    """
    rest = iter(jobs)
    first = list(islice(rest, 2))
    jobs = chain(first, rest)
    if workers <= 1 or len(first) < 2:
        yield from map(work, jobs)
        return
    # A fork would not survive the threads of progress bars and pyarrow, and a spawn imports torch in each process:
    # these fork from one server that has imported it.
    context = get_context("forkserver")
    context.set_forkserver_preload([type(work).__module__])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(work,))
    try:
        # Ctrl-C reaches the whole group; the parent alone answers it, once a process is there that can be ended.
        resource_tracker.ensure_running()  # first: it unblocks the signal when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            pool.submit(num_cores).result()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from begun_ahead(lambda job: pool.submit(_run, job).result, jobs, ahead=_AHEAD * workers)
    except (BrokenProcessPool, EOFError) as error:  # the second from the server, about one that died while it began
        raise RunError(
            "a process died, most likely for want of memory (give fewer --workers), or because a script calls this "
            "outside of `if __name__ == '__main__':`; correct that and run the same command again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def begun_ahead(begin: Callable[[Job], Callable[[], Result]], jobs: Iterable[Job], *, ahead: int) -> Iterator[Result]:
    """Yields the result of each job, in their order; `begin` starts a job, and returns what waits for its result.

    Args:
        ahead: jobs that have begun when the first of them is waited for.
    """
    rest = iter(jobs)
    pending: deque[Callable[[], Result]] = deque()
    while True:
        pending.extend(begin(job) for job in islice(rest, ahead - len(pending)))
        if not pending:
            return
        yield pending.popleft()()


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work


def _run(job: Any) -> Any:
    assert _work is not None
    return _work(job)
