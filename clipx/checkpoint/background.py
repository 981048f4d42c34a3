"""Work beside the training: one job at a time, in a thread, over a process group of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Generic, TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from clipx.distributed.collectives import world_size

T = TypeVar("T")


class Background(Generic[T]):
    """Runs a job beside the training; all ranks make one together, and start the same jobs in the same order.

    A job communicates over `group` and nothing else, and ends alike on all ranks, though not at the same moment: what
    ranks decide together must not hang on `done`, unless one of them decides for all.

    Args:
        group: all ranks; none: this process alone.
        timeout_s: of the jobs' collectives.
    """

    def __init__(self, group: ProcessGroup | None, *, timeout_s: float) -> None:
        self.group: ProcessGroup | None = None
        if world_size(group) > 1:
            own = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            assert isinstance(own, ProcessGroup)
            self.group = own
        self._job: Future[T] | None = None

    @property
    def idle(self) -> bool:
        """Whether there is no job, finished or not, whose result was not taken."""
        return self._job is None

    @property
    def done(self) -> bool:
        """Whether the job has ended on this rank."""
        return self._job is not None and self._job.done()

    def start(self, job: Callable[[], T]) -> None:
        """Begins a job; the one before must have been taken."""
        assert self.idle, "one job at a time"
        self._job = Future()
        # a daemon: where storage hangs for ever, the process can end all the same. Of normal priority: a thread that
        # loader processes keep from its core may hold the interpreter's lock, and the training would wait for it
        threading.Thread(target=_run, args=(job, self._job), name="checkpoint", daemon=True).start()

    def take(self, timeout_s: float | None = None) -> T:
        """The result of the job, waited for.

        Raises:
            TimeoutError: it did not end in time; else whatever the job raised.
        """
        assert self._job is not None, "no job"
        result = self._job.result(timeout_s)
        self._job = None
        return result

    def close(self) -> None:
        """Leaves the group; all ranks do, and a job has ended."""
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None


def _run(job: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)
