"""clipx.launching.start: running a launcher, with a shell in the place of one."""

import json
import os
import shlex
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from clipx.errors import InputError
from clipx.launching.commands import LaunchCommand
from clipx.launching.start import AGAIN, become, supervise
from clipx.train.status import Status


def shell(script: str, **environment: str) -> LaunchCommand:
    return LaunchCommand(("bash", "-c", script), environment)


def say(run_dir: Path, status: str, **more: int) -> str:
    """A shell command that replaces status.json."""
    text = json.dumps({"status": status, "step": 1, "reason": "a test", **more})
    return f"echo {shlex.quote(text)} > {shlex.quote(str(run_dir))}/status.json; "


def test_the_exit_code_is_that_of_the_run() -> None:
    assert Status.AGAIN.value == ("again", AGAIN)


class TestSupervise:
    @pytest.mark.parametrize(
        ("status", "launcher", "expected"),
        [("again", 1, 85), ("again", 0, 85), ("failed", 1, 1), ("complete", 0, 0), (None, 1, 1), (None, 0, 0)],
    )
    def test_status_says_what_happened(self, tmp_path: Path, status: str | None, launcher: int, expected: int) -> None:
        said = say(tmp_path, status) if status else ""
        assert supervise(shell(f"{said} exit {launcher}"), tmp_path) == expected

    def test_bad_input_found_by_the_run_is_bad_input(self, tmp_path: Path) -> None:
        assert supervise(shell(say(tmp_path, "failed", exit_code=2) + "exit 1"), tmp_path) == 2

    def test_the_word_of_an_earlier_start_does_not_count(self, tmp_path: Path) -> None:
        (tmp_path / "status.json").write_text(json.dumps({"status": "again", "step": 1, "reason": "a test"}))
        assert supervise(shell("exit 1"), tmp_path) == 1

    def test_the_launcher_has_the_variables(self, tmp_path: Path) -> None:
        assert supervise(shell('exit "$CODE"', CODE="7"), tmp_path) == 7

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
    @pytest.mark.parametrize("status", ["again", "failed", None])
    def test_signals_reach_the_launcher_and_its_end_is_waited_for(
        self, tmp_path: Path, number: signal.Signals, status: str | None
    ) -> None:
        said = say(tmp_path, status) if status else ""
        script = f"""
            stop() {{ echo {number.name} > {tmp_path}/signal; {said} exit 1; }}
            trap stop {number.name}
            touch {tmp_path}/ready
            for i in {{1..400}}; do sleep 0.05; done
        """
        before = signal.getsignal(number)
        sender = threading.Thread(target=send_when, args=(tmp_path / "ready", number, before))
        sender.start()
        code = supervise(shell(script), tmp_path)
        sender.join()
        assert (tmp_path / "signal").read_text().strip() == number.name
        assert code == {"again": 85, "failed": 1, None: 85}[status]  # before a word nothing was lost
        assert signal.getsignal(number) is before


def send_when(ready: Path, number: signal.Signals, before: object) -> None:
    """Signals this process once the launcher and the process itself listen."""
    deadline = time.monotonic() + 20
    while not (ready.exists() and signal.getsignal(number) is not before) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), number)


class TestBecome:
    def test_the_launcher_takes_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        called: list[Any] = []
        monkeypatch.setattr(os, "execvpe", lambda *call: called.append(call))
        monkeypatch.setenv("KEPT", "1")
        monkeypatch.setenv("CHANGED", "1")
        become(shell("exit 0", CHANGED="2"))
        program, arguments, environment = called[0]
        assert (program, arguments) == ("bash", ("bash", "-c", "exit 0"))
        assert (environment["KEPT"], environment["CHANGED"]) == ("1", "2")

    def test_a_launcher_that_is_not_here(self) -> None:
        with pytest.raises(
            InputError, match="sbatch-of-elsewhere is not installed here; start on a machine that has it"
        ):
            become(LaunchCommand(("sbatch-of-elsewhere", "a"), {}))
