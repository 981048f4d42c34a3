"""Where a run writes: judged on made-up values, tried in real folders and a store."""

import errno
import fcntl
from pathlib import Path

import pytest
from tiny import CONFIG

from clipx.config.load import load_config
from clipx.doctor import run_folder
from clipx.doctor.findings import GIB, Finding, Verdict
from clipx.doctor.run_folder import (
    Writing,
    existing_parent,
    judge_abilities,
    judge_room,
    judge_speed,
    look_at_folder,
    look_at_run_folder,
    measure_writing,
    num_parameters,
)
from clipx.models.clip import build_model

OK, WARNING, PROBLEM = Verdict
ABLE = Writing(free=GIB, bytes_per_s=1e9, locks=True, renames=True, file_system="ext4")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_PIECES", 1)
    monkeypatch.setattr(run_folder, "_PIECE", 1 << 16)


def _config(*overrides: str):
    return load_config([CONFIG], overrides)


@pytest.mark.parametrize(("free", "verdict"), [(4, OK), (3.9, WARNING), (2, WARNING), (1.9, PROBLEM)])
def test_room_for_what_is_kept_and_one_more(free: float, verdict: Verdict) -> None:
    finding = judge_room("room", int(free * GIB), checkpoint=GIB, kept=3)
    assert finding.verdict is verdict
    assert "3 checkpoints of 1 GiB and one under way: 4 GiB" in finding.found


@pytest.mark.parametrize(
    ("bytes_per_s", "checkpoint", "background", "verdict"),
    [
        (60e6, None, False, OK),
        (59e6, None, False, WARNING),
        (1e6, 30_000_000, False, OK),
        (1e6, 31_000_000, False, WARNING),
        (1e6, 31_000_000, True, OK),
    ],
)
def test_speed(bytes_per_s: float, checkpoint: int | None, background: bool, verdict: Verdict) -> None:
    assert judge_speed("write", bytes_per_s, checkpoint=checkpoint, background=background).verdict is verdict


@pytest.mark.parametrize(
    ("found", "verdicts"),
    [
        (ABLE, []),
        (ABLE._replace(locks=False), [WARNING]),
        (ABLE._replace(renames=False), [PROBLEM]),
        (ABLE._replace(file_system="tmpfs"), [WARNING]),
    ],
)
def test_abilities(found: Writing, verdicts: list[Verdict]) -> None:
    assert [finding.verdict for finding in judge_abilities("kind", found)] == verdicts


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_writing(tmp_path / "runs" / "x")
    assert (found.locks, found.renames) == (True, True)
    assert found.bytes_per_s > 0
    assert found.file_system
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(run_folder.fcntl, "flock", lambda file, operation: None)  # as on NFS with nolock
    assert measure_writing(tmp_path).locks is False
    monkeypatch.undo()

    def cannot(*args: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(run_folder.fcntl, "flock", cannot)
    monkeypatch.setattr(run_folder.os, "rename", cannot)
    assert measure_writing(tmp_path)[2:4] == (False, False)
    assert list(tmp_path.iterdir()) == []


def test_flock_of_two_openings_excludes(tmp_path: Path) -> None:
    """What the check of locks rests on."""
    with open(tmp_path / "x", "w") as first, open(tmp_path / "x", "w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert existing_parent(tmp_path) == tmp_path


def test_parameters_are_those_of_the_model() -> None:
    config = _config()
    whole = build_model(config.model, vocab_size=49408, seed=0)
    assert num_parameters(config) == sum(parameter.numel() for parameter in whole.parameters())


def _lines(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def test_run_dir_holds_the_checkpoints(tmp_path: Path) -> None:
    overrides = [f"run_dir={tmp_path}", "checkpoint.keep_last=2", "checkpoint.keep_every=10", "steps=40"]
    lines = _lines(look_at_run_folder(_config(*overrides, "ema=null"), parameters=1 << 20))
    assert "6 checkpoints of 12 MiB" in lines["room in run_dir"].found
    lines = _lines(look_at_run_folder(_config(*overrides, "ema={}"), parameters=1 << 20))
    assert "6 checkpoints of 16 MiB" in lines["room in run_dir"].found
    assert "room in run_dir" not in _lines(look_at_run_folder(_config(*overrides), parameters=None))


def test_checkpoints_elsewhere(tmp_path: Path) -> None:
    config = _config(f"run_dir={tmp_path / 'run'}", f"checkpoint.folder={tmp_path / 'saved'}")
    lines = _lines(look_at_run_folder(config, parameters=10))
    assert {"write run_dir", "write checkpoint.folder", "room in checkpoint.folder"} <= set(lines)
    assert "room in run_dir" not in lines


def test_a_store_is_written_read_and_cleared(tmp_path: Path) -> None:
    import fsspec

    config = _config(f"run_dir={tmp_path}", "checkpoint.folder=memory://doctor/run/")
    finding = _lines(look_at_run_folder(config, parameters=10))["write checkpoint.folder"]
    assert finding.verdict is OK
    assert fsspec.filesystem("memory").find("/doctor") == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = _config("run_dir=/proc/none")
    [finding] = look_at_run_folder(config, parameters=10)
    assert (finding.name, finding.verdict) == ("write run_dir", PROBLEM)
    assert finding.found.startswith("/proc/none: ")
    config = _config(f"run_dir={tmp_path}", "checkpoint.folder=https://127.0.0.1:9/x")
    assert _lines(look_at_run_folder(config, parameters=10))["write checkpoint.folder"].verdict is PROBLEM
    assert look_at_folder(Path("/proc")).verdict is PROBLEM
    assert look_at_folder(tmp_path).found.startswith(f"{tmp_path}: ")
