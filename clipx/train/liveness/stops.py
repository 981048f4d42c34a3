"""Requests to stop a run: signals, a file, a limit of time. They are noted when they come and obeyed between steps.

What a rank notes here is sent in the step's own all-reduce, so that all ranks stop after the same step.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

STOP_FILE = "STOP"

_LOOK_EVERY_S = 1.0  # a run folder may lie on a file system that answers slowly


class StopAskedError(Exception):
    """Ends what a run does before its first step, on all ranks alike; nothing of it is lost."""


class StopRequest:
    """Whether this process was asked to stop, and by what.

    Args:
        run_dir: the folder in which a file named STOP asks for it.
        max_minutes: time from now on after which the run stops; 0 means no limit.
    """

    def __init__(self, run_dir: Path, *, max_minutes: float = 0.0) -> None:
        self.reason: str | None = None
        self.began_at = datetime.now(UTC)
        self._interrupted = False
        self._file = run_dir / STOP_FILE
        self._max_minutes = max_minutes
        self._began = self._looked = time.monotonic()

    def __bool__(self) -> bool:
        return self.reason is not None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler. The first reason stays. A second Ctrl-C ends at once; no other signal breaks the save.

        Raises:
            KeyboardInterrupt: at the second Ctrl-C.
        """
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.reason = self.reason or signal.Signals(number).name

    def look(self) -> None:
        """Checks the clock, and about once a second the file. One rank calls this, and asks for all."""
        now = time.monotonic()
        if self._max_minutes and now - self._began >= 60 * self._max_minutes:
            self.reason = self.reason or f"max_minutes={self._max_minutes:g}"
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            if os.path.exists(self._file):  # unlike Path.exists, False where the file system fails for a moment
                self.reason = self.reason or f"the file {STOP_FILE}"

    def forget_file(self) -> None:
        """Removes the file after the stop, since the next start is meant to run."""
        self._file.unlink(missing_ok=True)


@contextmanager
def catch_stops(request: StopRequest, signals: Sequence[str]) -> Iterator[None]:
    """Notes `signals` (names) and SIGINT in `request` within the block, and restores the handlers after it.

    Python gives signals to the main thread alone: in another one nothing is noted here.
    """
    numbers = {signal.SIGINT, *(signal.Signals[name] for name in signals)}
    if threading.current_thread() is not threading.main_thread():
        numbers = set()
    before = {number: signal.signal(number, request.note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
