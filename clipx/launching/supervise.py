"""Runs torchrun or accelerate launch, passes signals on to the run, and ends with the run's exit code.

Those launchers end with 0 or 1, whatever happened. If the launcher of one node gets a signal, those of the other nodes
wait for it for five minutes. So signals go to the processes of the run itself, which agree to stop and end together;
then all launchers end by themselves. `python -m clipx.launching.supervise RUN_DIR COMMAND ...`
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
"""Exit code of a run that saved and stopped on request: start it again."""

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Signals that are passed on to the processes of a run; the config's stop_signals says which of them stop it."""

SAVE_SECONDS = 300.0
"""Seconds to save after a signal, unless the environment variable SAVE_SECONDS has another value."""

_LEAVE_SECONDS = 10.0  # for a launcher to end after its processes; takes 0.1 s, unless it is about to restart them


def supervise(command: Sequence[str], run_dir: Path, *, environment: Mapping[str, str]) -> int:
    """Runs a launcher to its end.

    The run itself writes to status.json how it ended. If the launcher failed, the file counts only if this start wrote
    it. If the launcher did not fail, this start did write it, though a network file system may show its time late.

    Returns:
        The exit code of the run. 85 also if it was asked to stop and ended before it wrote status.json: it has lost
        nothing.
    """
    before = _written_at(run_dir)
    launcher = _Launcher(environment)
    with launcher.passes_signals_on():
        code = launcher.run(command)
    written = _written_at(run_dir)
    if written is not None and (code == 0 or written != before):
        return _exit_code(json.loads((run_dir / "status.json").read_text(encoding="utf-8")), code)
    return AGAIN if code and launcher.asked_to_stop else code


def _exit_code(status: Mapping[str, object], launcher_code: int) -> int:
    """The exit code from the run's status.json if it says more than the launcher's, else the launcher's."""
    if status["status"] == "again":
        return AGAIN
    return 2 if launcher_code and status.get("exit_code") == 2 else launcher_code


def _written_at(run_dir: Path) -> int | None:
    """Time of status.json in ns, on the clock of its file system; it changes if this start writes the file."""
    try:
        return (run_dir / "status.json").stat().st_mtime_ns
    except OSError:
        return None


class _Launcher:
    """A launcher that runs, and whether it was asked to stop."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.asked_to_stop = False
        self._environment = environment
        self._save_s = _seconds(environment)
        self._saving: set[int] = set()
        self._give_up_at = math.inf
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def passes_signals_on(self) -> Iterator[None]:
        """Passes signals on within the block, and restores the handlers after it."""
        before = {name: signal.signal(signal.Signals[name], self._pass_on) for name in STOP_SIGNALS}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(signal.Signals[name], handler)

    def run(self, command: Sequence[str]) -> int:
        """Runs the launcher until it and all processes that were asked to save have ended.

        Returns:
            Its exit code, or 128 + the number of the signal that killed it.
        """
        self._process = process = subprocess.Popen(command, env=self._environment)
        if self.asked_to_stop:  # the signal came before there was a process to pass it on to
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
        """Ends a launcher whose processes were asked to stop but did not end in time, or that has restarted them."""
        if self._give_up_at < math.inf and not any(map(_lives, self._saving)):
            self._give_up_at = min(self._give_up_at, time.monotonic() + _LEAVE_SECONDS)
        if time.monotonic() >= self._give_up_at:
            process.terminate()
            self._give_up_at = math.inf


def _seconds(environment: Mapping[str, str]) -> float:
    """SAVE_SECONDS, or its default where it is empty or no number."""
    with suppress(ValueError):
        return float(environment.get("SAVE_SECONDS", ""))
    return SAVE_SECONDS


def _ended(process: "subprocess.Popen[bytes]") -> int | None:
    """Waits half a second for a process to end; returns its exit code, or None if it still runs."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=0.5)
    return None


def _children(pid: int) -> set[int]:
    """The living child processes of `pid` on Linux; empty on other systems."""
    numbers = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return {number for number in numbers if _parent(number) == pid}


def _lives(pid: int) -> bool:
    return _parent(pid) is not None


def _parent(pid: int) -> int | None:
    """The parent of a process; None if the process has ended."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, parent, *_ = stat.rpartition(")")[2].split()  # the name before it may hold any character
        return None if state == "Z" else int(parent)
    return None


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[2:], Path(sys.argv[1]), environment=os.environ))
