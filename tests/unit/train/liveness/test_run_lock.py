"""One run in a folder at a time."""

import errno
import fcntl
import logging
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from clipx.errors import InputError
from clipx.train.liveness import run_lock as module
from clipx.train.liveness.run_lock import run_lock


def _hold(run_dir: Path, connection: Connection) -> None:
    with run_lock(run_dir):
        connection.send(os.getpid())
        connection.recv()
        if connection.recv() == "die":
            os._exit(9)


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(tmp_path / "run", theirs))
    process.start()
    yield process, ours, ours.recv()
    process.kill()
    process.join()


def test_the_second_names_the_first(tmp_path: Path, holder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 0.0)
    with (
        pytest.raises(InputError, match=rf"run_dir=.*run is in use by process {holder[2]} on "),
        run_lock(tmp_path / "run"),
    ):
        pass


@pytest.mark.parametrize(("end", "elsewhere"), [("die", False), ("leave", False), ("die", True)])
def test_it_waits_for_the_first_to_leave(
    tmp_path: Path,
    holder: Any,
    end: str,
    elsewhere: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if elsewhere:  # a machine that died: the file system does not know it yet
        monkeypatch.setattr(module.socket, "gethostname", lambda: "another")
        monkeypatch.setattr(module, "_WAIT_S", 0.0)
    process, connection, pid = holder
    sleep = module.time.sleep

    def let_go(seconds: float) -> None:
        connection.send("go on")
        connection.send(end)
        process.join()
        sleep(seconds)

    monkeypatch.setattr(module.time, "sleep", let_go)
    with caplog.at_level(logging.INFO), run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert caplog.text.count(f"waiting for process {pid} on") == 1


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unknown)
    with caplog.at_level(logging.WARNING), run_lock(tmp_path / "run"):
        pass
    assert "cannot be locked" in caplog.text


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="mend the storage or choose another"), run_lock(tmp_path / "file" / "run"):
        pass


def test_a_full_disk_costs_the_name_of_the_holder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    with run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == ""
