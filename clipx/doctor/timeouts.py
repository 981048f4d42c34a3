"""Calls with a time limit: a check that hangs becomes a line of the report and blocks nothing else."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class HungError(TimeoutError):
    """A call took longer than its limit. Its thread still runs, and the worker accepts no further calls."""


class Worker:
    """A thread that runs calls one after the other, each with a time limit.

    CUDA's current device and a process group belong to the thread that set them, so all their calls use one worker. A
    thread that hangs cannot be ended: it is a daemon, and `hung` says that the process may have to be ended instead.
    """

    def __init__(self) -> None:
        self.hung = False
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="doctor").start()

    def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """Runs `function` on the worker's thread and returns its result.

        Raises:
            HungError: it did not return in time, or an earlier call did not.
            Exception: an error of the function itself.
        """
        if self.hung:
            raise HungError("an earlier check hangs")
        future: Future[T] = Future()
        self._calls.put((function, future))
        if not wait([future], timeout_s).done:
            self.hung = True
            raise HungError(f"no answer within {timeout_s:g} s")
        return future.result()

    def _work(self) -> None:
        while True:
            function, future = self._calls.get()
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)
