"""Signals that ask a run to stop: noted when they come, acted on between steps, by all ranks together."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether and by what this process was asked to stop."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler. A second Ctrl-C means now; a second SIGTERM does not break the save."""
        if number == signal.SIGINT and self.reason == "SIGINT":
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Handles SIGTERM, SIGUSR1 and SIGINT within the block, and restores the handlers after it."""
    request = StopRequest()
    before = {number: signal.signal(number, request.note) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
