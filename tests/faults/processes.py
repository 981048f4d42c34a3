"""`clipx train` as processes: started, watched, signalled; and what they leave behind when they have ended."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Fault = tuple[str, Mapping[str, Any]]
"""A function of `faults.injections` with its arguments."""


def adopt_orphans() -> None:
    """From now on a process whose parent has died becomes a child of this one, so that none can hide."""
    assert ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def environment(faults: Sequence[Fault] = (), **variables: str) -> dict[str, str]:
    """Of a child process: one thread, no launcher's and no cloud's variables."""
    kept = {k: v for k, v in os.environ.items() if k not in _LAUNCHERS and not k.startswith("AWS_")}
    folders = [ROOT, HERE.parent, HERE / "site"]
    kept |= {"OMP_NUM_THREADS": "1", "CLIPX_DEBUG": "0", "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return kept | {"FAULTS": json.dumps(faults)} | variables


def wait_until(condition: Callable[[], object], what: str, *, timeout_s: float = 60) -> None:
    """Returns when `condition()` is true; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.005)


class Process:
    """A child of this process, started by it or inherited."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.code: int | None = None
        """Exit code as of subprocess: -N for signal N; None while it runs."""

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, *, timeout_s: float = 60) -> int:
        """The exit code; fails when there is none in time."""
        wait_until(lambda: self.poll() is not None, f"the end of {self.pid}", timeout_s=timeout_s)
        assert self.code is not None
        return self.code

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text() if self.log.exists() else ""


class Starter:
    """Starts `clipx`: as a fork of a process that has imported it, or cold, as a person does."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def warm(self, arguments: Sequence[str], log: Path, variables: Mapping[str, str]) -> Process:
        """A fork that runs `clipx ARGUMENTS`; the variable FAULTS holds."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, str(HERE / "warm_start.py")],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert _answer(self._server) == "ready"
        assert self._server.stdin is not None
        request = {"arguments": list(arguments), "environment": dict(variables), "log": str(log)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Process(int(_answer(self._server)), log)

    def cold(self, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> Process:
        """Any command in a session of its own."""
        output = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), output, (os.POSIX_SPAWN_DUP2, 1, 2)]
        return Process(os.posix_spawnp(command[0], command, variables, file_actions=actions, setsid=True), log)

    def close(self) -> None:
        """Ends the process that forks."""
        if self._server is not None:
            self._server.communicate()

    @property
    def pids(self) -> set[int]:
        """Of this object's own process."""
        return set() if self._server is None else {self._server.pid}


def _answer(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    answer = server.stdout.readline().strip()
    assert answer, "the process that forks has died"
    return answer


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> set[int]:
    """Children, and theirs, that still run."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            state, parent = _state_and_parent(int(entry.name))
            if state not in ("Z", ""):
                parents.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    new = parents.get(pid, [])
    while new:
        found |= set(new)
        new = [child for parent in new for child in parents.get(parent, [])]
    return found


def _state_and_parent(pid: int) -> tuple[str, int]:
    """Z is a zombie; an empty state says that there is no such process."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return state, int(parent)


def still_run(pids: Iterable[int]) -> bool:
    """Whether any of these processes has not ended."""
    return any(_state_and_parent(pid)[0] not in ("Z", "") for pid in pids)


@contextmanager
def nothing_left(starter: Starter) -> Iterator[None]:
    """Fails when processes, or files in /dev/shm that nobody uses, are there after the block and were not before."""
    before, files_before = descendants(os.getpid()), _shared_files()
    try:
        yield
        started = lambda: descendants(os.getpid()) - before - starter.pids  # noqa: E731
        wait_until(lambda: not started(), "the end of all processes", timeout_s=10)
        # files of tests that run beside this one are in use, or soon gone
        wait_until(lambda: not (_shared_files() - files_before - _files_in_use()), "an empty /dev/shm", timeout_s=10)
    finally:
        for pid in descendants(os.getpid()) - before - starter.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _shared_files() -> set[str]:
    """All but folders, which are people's own, and semaphores: those of a run have no name, others' do."""
    files = [path for path in Path("/dev/shm").iterdir() if path.is_file()]
    return {str(path) for path in files if not path.name.startswith("sem.")}


def _files_in_use() -> set[str]:
    used: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            used |= {line.split()[-1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return used
