"""The Python stacks of all threads of this process and of its loader processes.

faulthandler prints them from a signal handler in C, which needs neither the GIL nor a thread that still runs.
"""

import faulthandler
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Self

STDERR = 2  # the file descriptor

_TO_STDERR = signal.SIGRTMAX
_TO_MEMORY = signal.SIGRTMAX - 1
_ANSWERS_WITHIN_S = 0.5  # for one process; it takes about 10 ms
_ALL_WITHIN_S = 5.0
_QUIET_S = 0.05  # an answer that has not grown for this long is complete


class Stacks:
    """A context in which this process, and every process forked from it, answers signals with its stacks.

    A person can use `kill -RTMAX PID`: it prints the stacks on standard error, and the process goes on. The next lower
    signal is for `collect`: its answers go to a file in memory, which a forked process inherits with the handlers. So
    the answers of several processes do not mix, and a disk that hangs does not delay them.
    """

    def __enter__(self) -> Self:
        self._memory = os.memfd_create("clipx-stacks")
        faulthandler.register(_TO_STDERR, file=STDERR, all_threads=True)
        faulthandler.register(_TO_MEMORY, file=self._memory, all_threads=True)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (_TO_STDERR, _TO_MEMORY):
            faulthandler.unregister(number)
        os.close(self._memory)

    def collect(self) -> str:
        """The stacks of this process and of its multiprocessing children, within 5 s; call it once, from any thread."""
        self._write(f"--- process {os.getpid()}, the rank\n")
        faulthandler.dump_traceback(self._memory, all_threads=True)
        stops_at = time.monotonic() + _ALL_WITHIN_S
        for child in multiprocessing.active_children():
            assert child.pid is not None
            state, answers = _state(child.pid)
            self._write(f"\n--- process {child.pid}, {child.name}, {state}\n")
            if answers and time.monotonic() < stops_at:
                before = self._size()
                os.kill(child.pid, _TO_MEMORY)
                self._await_answer(before)
        return os.pread(self._memory, self._size(), 0).decode(errors="replace")

    def _await_answer(self, before: int) -> None:
        """Waits until the file in memory has grown from `before` bytes and grows no more."""
        size, stops_at = before, time.monotonic() + _ANSWERS_WITHIN_S
        while time.monotonic() < stops_at:
            time.sleep(_QUIET_S)
            last, size = size, self._size()
            if size == last > before:
                return
        if size == before:
            self._write("no answer: it is stopped, or stuck in the kernel\n")

    def _size(self) -> int:
        return os.fstat(self._memory).st_size

    def _write(self, text: str) -> None:
        os.write(self._memory, text.encode())


def _state(pid: int) -> tuple[str, bool]:
    """A process's state in the kernel's words, and whether it handles the signal of `collect`, or would die of it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return "gone", False
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return fields["State"], bool(int(fields["SigCgt"], 16) >> (_TO_MEMORY - 1) & 1)
