"""clipx.launching.supervise: over a launcher and its processes, with shells in the place of both."""

import json
import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from clipx.launching import supervise as supervising
from clipx.launching.supervise import AGAIN, supervise
from clipx.train.liveness.status import Status


def run(script: str, run_dir: Path, **variables: str) -> int:
    return supervise(("bash", "-c", script), run_dir, environment={**os.environ, **variables})


def say(run_dir: Path, status: str, **more: int) -> str:
    """A shell command that replaces status.json."""
    text = json.dumps({"status": status, "step": 1, "reason": "a test", **more})
    return f"echo {shlex.quote(text)} > {shlex.quote(str(run_dir))}/status.json; "


def process(folder: Path, *, on_signal: str) -> Path:
    """A process of the run: it listens for signals, notes them and does `on_signal`; else it goes on for long."""
    script = folder / "process"
    script.write_text(
        f"""
        for name in TERM USR1; do trap "echo $name >> {folder}/heard; act" $name; done
        act() {{
            {on_signal}
        }}
        touch {folder}/ready
        for i in {{1..1200}}; do sleep 0.05; done
        """
    )
    return script


@pytest.fixture
def send(tmp_path: Path) -> "Sender":
    return Sender(tmp_path / "ready")


class Sender:
    """Signals this process from aside once a launcher, in `supervise`, and its process are ready."""

    def __init__(self, ready: Path) -> None:
        self.ready = ready

    def __call__(self, number: signal.Signals) -> None:
        threading.Thread(target=self._send, args=(number, signal.getsignal(number)), daemon=True).start()

    def _send(self, number: signal.Signals, before: object) -> None:
        deadline = time.monotonic() + 20
        while not (self.ready.exists() and signal.getsignal(number) is not before):
            assert time.monotonic() < deadline, "not ready in 20 s"
            time.sleep(0.01)
        os.kill(os.getpid(), number)


def test_the_exit_code_is_that_of_the_run() -> None:
    assert Status.AGAIN.value == ("again", AGAIN)


class TestExitCode:
    @pytest.mark.parametrize(
        ("status", "launcher", "expected"),
        [("again", 1, 85), ("again", 0, 85), ("failed", 1, 1), ("complete", 0, 0), (None, 1, 1), (None, 0, 0)],
    )
    def test_status_says_what_happened(self, tmp_path: Path, status: str | None, launcher: int, expected: int) -> None:
        said = say(tmp_path, status) if status else ""
        assert run(f"{said} exit {launcher}", tmp_path) == expected

    def test_bad_input_found_by_the_run_is_bad_input(self, tmp_path: Path) -> None:
        """The launcher says 1; who restarts what failed must know that this one is not worth it."""
        assert run(say(tmp_path, "failed", exit_code=2) + "exit 1", tmp_path) == 2

    @pytest.mark.parametrize("age_s", [10, -3600], ids=["in the past", "by a clock that is ahead"])
    def test_the_word_of_an_earlier_start_does_not_count(self, tmp_path: Path, age_s: int) -> None:
        write_earlier(tmp_path, "again", age_s)
        assert run("exit 1", tmp_path) == 1

    def test_a_new_word_counts_by_a_clock_that_is_behind(self, tmp_path: Path) -> None:
        written = write_earlier(tmp_path, "failed", 3600)
        on_the_server = f"touch -d @{written + 60} {tmp_path}/status.json;"
        assert run(f"{say(tmp_path, 'again')} {on_the_server} exit 1", tmp_path) == 85

    def test_where_nothing_failed_the_word_counts_whatever_its_time(self, tmp_path: Path) -> None:
        """A network file system may show another node's change late; taken for complete, the run would not go on."""
        write_earlier(tmp_path, "again", 10)
        assert run("exit 0", tmp_path) == 85

    def test_a_launcher_that_was_killed(self, tmp_path: Path) -> None:
        assert run("kill -9 $$", tmp_path) == 137

    def test_the_launcher_has_the_variables(self, tmp_path: Path) -> None:
        assert run('exit "$CODE"', tmp_path, CODE="7") == 7


def write_earlier(run_dir: Path, status: str, age_s: int) -> float:
    (run_dir / "status.json").write_text(json.dumps({"status": status, "step": 1, "reason": "a test"}))
    written = time.time() - age_s
    os.utime(run_dir / "status.json", (written, written))
    return written


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
    def test_they_reach_the_processes_and_the_end_is_waited_for(
        self, tmp_path: Path, send: Sender, number: signal.Signals
    ) -> None:
        """And not the launcher: it ends when all nodes have, and leaves none of them waiting."""
        one = process(tmp_path, on_signal=f"sleep 0.1; {say(tmp_path, 'again')} exit 0")
        before = signal.getsignal(number)
        send(number)
        script = f"trap 'touch {tmp_path}/launcher_heard' TERM USR1; bash {one} & wait $!"
        assert run(script, tmp_path) == 85
        assert (tmp_path / "heard").read_text().split() == [number.name[3:]]
        assert not (tmp_path / "launcher_heard").exists()
        assert signal.getsignal(number) is before

    @pytest.mark.parametrize(("status", "expected"), [("failed", 1), (None, 85)])
    def test_a_stop_that_went_wrong(self, tmp_path: Path, send: Sender, status: str | None, expected: int) -> None:
        """Before the run got as far as a word, nothing was lost."""
        one = process(tmp_path, on_signal=(say(tmp_path, status) if status else "") + "exit 1")
        send(signal.SIGTERM)
        assert run(f"bash {one} & wait $!", tmp_path) == expected

    def test_a_launcher_that_has_not_started_its_processes_hears_itself(self, tmp_path: Path, send: Sender) -> None:
        send(signal.SIGTERM)
        assert run(f"touch {tmp_path}/ready; exec sleep 60", tmp_path) == 85

    def test_stopped_before_it_is_started_it_says_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A signal that comes before there is anything to pass it on to is not forgotten."""
        popen = subprocess.Popen

        def signalled(*arguments: object, **options: object) -> "subprocess.Popen[bytes]":
            os.kill(os.getpid(), signal.SIGUSR1)
            return popen(*arguments, **options)  # type: ignore[call-overload, no-any-return]

        monkeypatch.setattr(subprocess, "Popen", signalled)
        assert run("exec sleep 60", tmp_path) == 85

    def test_a_launcher_that_leaves_its_processes_saving_is_no_end(self, tmp_path: Path, send: Sender) -> None:
        """torchrun does at a second signal; Slurm would end its processes with this one."""
        one = process(tmp_path, on_signal=f"touch {tmp_path}/left; sleep 1; {say(tmp_path, 'again')} exit 0")
        send(signal.SIGTERM)
        script = f"bash {one} & until [[ -e {tmp_path}/left ]]; do sleep 0.05; done; exit 1"
        assert run(script, tmp_path) == 85
        assert (tmp_path / "status.json").exists()

    def test_one_that_starts_its_processes_again_is_ended(
        self, tmp_path: Path, send: Sender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(supervising, "_LEAVE_SECONDS", 0.1)
        one = process(tmp_path, on_signal="exit 1")
        send(signal.SIGTERM)
        script = f"trap 'touch {tmp_path}/ended; kill $again; exit 1' TERM; bash {one}; sleep 60 & again=$!; wait"
        assert run(script, tmp_path) == 85
        assert (tmp_path / "ended").exists()

    def test_one_whose_processes_do_not_stop_in_time_is_ended(self, tmp_path: Path, send: Sender) -> None:
        one = process(tmp_path, on_signal=":")
        send(signal.SIGTERM)
        script = f"trap 'touch {tmp_path}/ended; kill -9 $stuck; exit 1' TERM; bash {one} & stuck=$!; wait; wait"
        assert run(script, tmp_path, SAVE_SECONDS="0.5") == 85
        assert (tmp_path / "ended").exists()
        assert (tmp_path / "heard").exists()
