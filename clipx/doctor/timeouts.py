"""Calls with a time limit: a check that hangs becomes a line of the report and blocks nothing else."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
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
        self._calls: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="doctor").start()

    def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """Runs `function` on the worker's thread and returns its result.

        Raises:
            HungError: it did not return in time, or an earlier call did not.
            Exception: an error of the function itself.
        """
        if self.hung:
            raise HungError("an earlier check hangs")
        self._calls.put(function)
        try:
            result, error = self._results.get(timeout=timeout_s)
        except Empty:
            self.hung = True
            raise HungError(f"no answer within {timeout_s:g} s") from None
        if error is not None:
            raise error
        return result

    def _work(self) -> None:
        while True:
            function = self._calls.get()
            try:
                self._results.put((function(), None))
            except Exception as error:
                self._results.put((None, error))
