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
    launcher = _Launcher(environment)
    with launcher.hears_signals():
        code = launcher.run(command)
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

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.asked_to_stop = False
        self._environment = environment
        self._save_s = float(environment.get("SAVE_SECONDS", SAVE_SECONDS))
        self._saving: set[int] = set()
        self._give_up_at = math.inf
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def hears_signals(self) -> Iterator[None]:
        """Handles the signals within the block, and restores the handlers after it."""
        before = {name: signal.signal(signal.Signals[name], self._pass_on) for name in STOP_SIGNALS}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(signal.Signals[name], handler)

    def run(self, command: Sequence[str]) -> int:
        """The launcher's exit code when it and what was asked to save have ended; 128 + the signal that killed it."""
        self._process = process = subprocess.Popen(command, env=self._environment)
        if self.asked_to_stop:  # before there was anything to pass it on to
            process.terminate()
        while (code := _ended(process)) is None:
            self._end_if_it_stays(process)
        # Slurm signals all processes of a step, and torchrun leaves its own behind at a second signal. When this
        # process ends, whoever started it ends them, with half a checkpoint.
        gives_up_at = min(self._give_up_at, time.monotonic() + self._save_s)
        while any(map(_lives, self._saving)) and time.monotonic() < gives_up_at:
            time.sleep(0.1)
        return code if code >= 0 else 128 - code

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.asked_to_stop = True
        if self._process is None:
            return
        processes = _children(self._process.pid)
        self._saving |= processes
        if number == signal.SIGINT:
            return  # a terminal sends it to the launcher itself
        if not processes:  # it has not started them yet
            self._process.send_signal(number)
            return
        self._give_up_at = min(self._give_up_at, time.monotonic() + self._save_s)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _end_if_it_stays(self, process: "subprocess.Popen[bytes]") -> None:
        """Ends a launcher whose processes were asked to stop and have not, or that has started them again."""
        if self._give_up_at < math.inf and not any(map(_lives, self._saving)):
            self._give_up_at = min(self._give_up_at, time.monotonic() + _LEAVE_SECONDS)
        if time.monotonic() >= self._give_up_at:
            process.terminate()
            self._give_up_at = math.inf


def _ended(process: "subprocess.Popen[bytes]") -> int | None:
    """Its exit code; None after half a second."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=0.5)
    return None


def _children(pid: int) -> set[int]:
    """The processes that `pid` has started and that live, on Linux; elsewhere none are found."""
    numbers = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return {number for number in numbers if _parent(number) == pid}


def _lives(pid: int) -> bool:
    return _parent(pid) is not None


def _parent(pid: int) -> int | None:
    """Of a process that has not ended."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, parent, *_ = stat.rpartition(")")[2].split()  # what is before may hold anything
        return None if state == "Z" else int(parent)
    return None


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[2:], Path(sys.argv[1]), environment=os.environ))
