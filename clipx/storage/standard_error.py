"""Standard error that a program outlives: a full disk behind it, a reader that is gone, a terminal that was closed."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from clipx.printable import shown

_STANDARD = (0, 1, 2)  # descriptors of input, output and error


class _Surviving(io.TextIOBase):
    """Writes line by line, keeps nothing that would fail at the end of the process, and loses what cannot go out.

    Args:
        stream: what standard error was; None if it was closed.
    """

    encoding = "utf-8"

    def __init__(self, stream: TextIO | None) -> None:
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self._stream = stream
        self._line = ""
        self._lost = 0
        self._why: Exception | None = None

    def writable(self) -> bool:
        """Always True."""
        return True

    def isatty(self) -> bool:
        """Whether a person watches."""
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """The stream's."""
        if self._stream is None:
            raise io.UnsupportedOperation("standard error is closed")
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        """Takes the text, which goes out with the end of its line."""
        self._line += text
        if "\n" in text or "\r" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Writes what there is, or loses it; the first that goes out again says how much was lost."""
        text, self._line, said = self._line, "", ""
        if self._lost:
            said = f"\nclipx: {self._lost} writes to standard error are lost ({self._why})\n"
        try:
            if text:
                self._write_through(said + text)
        except (OSError, ValueError) as error:  # ValueError: closed
            self._lost, self._why = self._lost + 1, error
        else:
            self._lost = 0 if text else self._lost

    def _write_through(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):  # not a file of the system's, as in a notebook
            self._stream.write(text)
            self._stream.flush()
            return
        data = text.encode(self.encoding, errors="backslashreplace")
        while data:
            data = data[os.write(descriptor, data) :]


class StderrOfNow(logging.Handler):
    """Writes messages, fit to be shown, to what sys.stderr is just then: a progress bar there keeps lines whole."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        print(shown(self.format(record)), file=sys.stderr, flush=True)


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Within the block warnings of a program that has not set up logging are fit to be shown: they name addresses."""
    before, logging.lastResort = logging.lastResort, StderrOfNow(logging.WARNING)
    try:
        yield
    finally:
        logging.lastResort = before


@contextmanager
def surviving_stderr() -> Iterator[None]:
    """Within the block no write to `sys.stderr` fails; descriptors 0 to 2 are open, so that no file becomes one."""
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
    before = sys.stderr
    if isinstance(before, _Surviving):
        yield
        return
    with suppress(OSError, ValueError, AttributeError):
        before.flush()
    sys.stderr = surviving = _Surviving(before)
    try:
        yield
    finally:
        surviving.flush()
        sys.stderr = before
