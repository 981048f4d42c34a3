"""Stands over torchrun or accelerate launch: passes signals on, and turns its exit code into the run's.

Those launchers end with 0 or 1, whatever happened, and one of them that is signalled leaves the others of a run on
several nodes waiting for it, for five minutes. So signals go to the processes of the run itself, which agree to stop
and end together; then all launchers end of themselves. `python -m clipx.launching.supervise RUN_DIR COMMAND ...`
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

AGAIN = 85
"""Exit code: saved and stopped on request, start it again."""

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Passed on to the processes of a run; what they make of each, the config's stop_signals says."""

SAVE_SECONDS = 300.0
"""Time to save after a signal, where the variable SAVE_SECONDS does not say otherwise."""

_LEAVE_SECONDS = 10.0  # for a launcher whose processes have ended; it takes 0.1 s, unless it means to start them again


def supervise(command: Sequence[str], run_dir: Path, *, environment: Mapping[str, str]) -> int:
    """Runs the launcher to its end and returns the run's exit code.

    What happened is the run's own word, in status.json. After a failure it counts if it is of this start; without one
    it is, though a network file system may show its time late. A run that was asked to stop and has not got as far as
    a word has lost nothing.
    """
    before = _written_at(run_dir)
    launcher = _Launcher(command, environment)
    with launcher.hears_signals():
        code = launcher.wait()
    written = _written_at(run_dir)
    if written is not None and (code == 0 or written != before):
        return _exit_code(json.loads((run_dir / "status.json").read_text()), code)
    return AGAIN if code and launcher.asked_to_stop else code


def _exit_code(word: Mapping[str, object], launchers: int) -> int:
    """The run's own, from its status.json, where it says more than the launcher's."""
    if word["status"] == "again":
        return AGAIN
    return 2 if launchers and word.get("exit_code") == 2 else launchers


def _written_at(run_dir: Path) -> int | None:
    """Time of status.json, in ns, on the clock of its file system: a changed one is of this start."""
    try:
        return (run_dir / "status.json").stat().st_mtime_ns
    except OSError:
        return None


class _Launcher:
    """A launcher that runs, and the stop that was asked of it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.asked_to_stop = False
        self._save_s = float(environment.get("SAVE_SECONDS", SAVE_SECONDS))
        self._saving: set[int] = set()
        self._give_up_at = math.inf
        self._process = subprocess.Popen(command, env=environment)

    @contextmanager
    def hears_signals(self) -> Iterator[None]:
        """Handles the signals within the block, and restores the handlers after it."""
        before = {name: signal.signal(signal.Signals[name], self._pass_on) for name in STOP_SIGNALS}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(signal.Signals[name], handler)

    def wait(self) -> int:
        """The launcher's exit code when it has ended, as a shell says it: 128 + the signal that killed it."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=0.5)
                return code if code >= 0 else 128 - code
            self._end_if_it_stays()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.asked_to_stop = True
        if number == signal.SIGINT:
            return  # a terminal sends it to the launcher itself
        processes = _children(self._process.pid)
        if not processes:  # it has not started them yet
            self._process.send_signal(number)
            return
        self._saving |= processes
        self._give_up_at = min(self._give_up_at, time.monotonic() + self._save_s)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _end_if_it_stays(self) -> None:
        """Ends a launcher whose processes were asked to stop and have not, or that has started them again."""
        if self._give_up_at < math.inf and not self._saving & _children(self._process.pid):
            self._give_up_at = min(self._give_up_at, time.monotonic() + _LEAVE_SECONDS)
        if time.monotonic() >= self._give_up_at:
            self._process.terminate()
            self._give_up_at = math.inf


def _children(pid: int) -> set[int]:
    """The processes that `pid` has started and that live, on Linux; elsewhere none are found."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()  # what is before may hold anything
            if int(parent) == pid and state != "Z":
                found.add(int(stat.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[2:], Path(sys.argv[1]), environment=os.environ))
