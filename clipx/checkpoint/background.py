"""Runs one job at a time beside the training, in a thread and with a process group of its own."""

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
    """Runs jobs beside the training; all ranks create one together, and start the same jobs in the same order.

    A job may communicate over `group` only. It ends with the same outcome on all ranks, but not at the same moment: do
    not decide on each rank by `done`; let one rank decide for all.

    Args:
        group: all ranks; None means this process alone.
        timeout_s: time limit of the jobs' collectives.
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
        """Whether no job is running and no result waits to be taken."""
        return self._job is None

    @property
    def done(self) -> bool:
        """Whether the job has ended on this rank."""
        return self._job is not None and self._job.done()

    def start(self, job: Callable[[], T]) -> None:
        """Starts a job; the result of the one before must have been taken."""
        assert self.idle, "one job at a time"
        self._job = Future()
        # a daemon, so that the process can end even if storage hangs for ever; and with normal priority, since a thread
        # that loader processes keep from its core may hold the interpreter's lock, for which the training would wait
        threading.Thread(target=_run, args=(job, self._job), name="checkpoint", daemon=True).start()

    def take(self, timeout_s: float | None = None) -> T:
        """Waits for the job to end, without limit or for so many seconds, and returns its result.

        Raises:
            TimeoutError: the job did not end in time.
            Exception: what the job raised.
        """
        assert self._job is not None, "no job"
        result = self._job.result(timeout_s)
        self._job = None
        return result

    def close(self) -> None:
        """Destroys the group; all ranks call this when no job runs."""
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None


def _run(job: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)
