"""The same work on many things, on all cores, results in the order of the things."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, resource_tracker
from typing import Any, TypeVar

from clipx.errors import RunError
from clipx.host import own_cores, share_of_cores

Job = TypeVar("Job")
Result = TypeVar("Result")

_work: Callable[[Any], Any] | None = None  # of this process


def num_cores() -> int:
    """Cores that this process may use; a container may have less than the machine."""
    own = own_cores()
    return max(1, int(share_of_cores(own, [own])))


def in_processes(work: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int) -> Iterator[Result]:
    """Yields `work(job)` for each job, in their order.

    Args:
        work: what every process does; sent to each once, so it must pickle.
        jobs: one call each.
        workers: processes; 1 works in this one.

    Raises:
        RunError: a process died.
        Exception: whatever `work` raises; jobs that were not begun are dropped.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
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
        yield from pool.map(_run, jobs)
    except BrokenProcessPool as error:
        raise RunError(
            "a process died, most likely for want of memory; run the same command again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work


def _run(job: Any) -> Any:
    assert _work is not None
    return _work(job)
