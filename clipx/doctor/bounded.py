"""Work that ends in time: a check that hangs becomes a line of the report and holds up nothing."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class HungError(TimeoutError):
    """A call took longer than it may; its thread is left behind, and this worker does nothing more."""


class Worker:
    """A thread that makes calls one after the other, while the caller waits for each as long as it wants to.

    One thread for all that belongs together: CUDA's current device and a process group's state stay where they were
    set. A thread that hangs cannot be ended; it is a daemon, and `hung` tells that the process may have to be.
    """

    def __init__(self) -> None:
        self.hung = False
        self._calls: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="doctor")
        self._thread.start()

    def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """What `function` returns, called on the worker's thread.

        Raises:
            HungError: it did not return in time, or an earlier call did not.
            Exception: what it raised.
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
