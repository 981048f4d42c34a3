"""Reading and writing: on made-up values, and tried in real folders, on a web server and in a store."""

import json
import time
from pathlib import Path

import fsspec
import pytest
from servers import WebServer
from shard_files import write_shards
from tiny import CONFIG

from clipx.config.load import load_config
from clipx.config.schema import RunConfig
from clipx.doctor import storage
from clipx.doctor.finding import GIB, Finding, Verdict
from clipx.doctor.storage import (
    check_folder,
    check_read_speed,
    check_run_folders,
    check_shards,
    check_space,
    check_write_speed,
    checkpoint_bytes,
    existing_parent,
    measure_writing,
)
from clipx.errors import InputError
from clipx.models.clip import build_model

OK, WARNING, PROBLEM = Verdict


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_MAX_READS", 2)
    monkeypatch.setattr(storage, "_PIECES", 2)
    monkeypatch.setattr(storage, "_PIECE", 1 << 16)


def _config(*overrides: str) -> RunConfig:
    return load_config([CONFIG], overrides)


def _with_shards(*shards: object) -> RunConfig:
    return _config(f"data.train={json.dumps(list(map(str, shards)))}")


def _lines(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


class TestReading:
    @pytest.mark.parametrize(("bytes_per_s", "verdict", "hint"), [(60e6, OK, ""), (59e6, WARNING, "data.cache.folder")])
    def test_speed(self, bytes_per_s: float, verdict: Verdict, hint: str) -> None:
        finding = check_read_speed("read", "x", bytes_per_s)
        assert (finding.verdict, hint in finding.hint) == (verdict, True)
        assert check_read_speed("read", "x", 60e6).value == "x: 60 MB/s by 8 readers (1,000 pairs/s of 60 kB)"

    def test_local_shards_are_read(self, tmp_path: Path) -> None:
        paths = write_shards(tmp_path, [3, 3])
        [finding] = check_shards(_with_shards(tmp_path))
        assert (finding.name, finding.value[:10]) == ("read train", "2 shards: ")
        assert finding.measurement is not None
        assert finding.measurement.value > 0
        Path(paths[0]).write_bytes(b"")
        [finding] = check_shards(_with_shards(tmp_path))
        assert (finding.verdict, f"{paths[0]}: the file is empty" in finding.value) == (PROBLEM, True)

    def test_shards_that_are_not_there_are_a_problem(self, tmp_path: Path) -> None:
        [finding] = check_shards(_with_shards(tmp_path / "{0..3}.tar"))
        assert finding.verdict is PROBLEM
        assert "match no tar file" in finding.value

    def test_a_web_server_is_read_by_ranges_or_said_to_have_none(self, tmp_path: Path) -> None:
        content = Path(write_shards(tmp_path, [2])[0]).read_bytes()
        with WebServer({"0.tar": content}) as server:
            [finding] = check_shards(_with_shards(f"{server.url}/0.tar"))
            assert finding.value.startswith("1 shards: ")
            server.ranges = False
            [finding] = check_shards(_with_shards(f"{server.url}/0.tar"))
            assert finding.verdict is WARNING
            assert "without ranges" in finding.value
            server.ranges, server.failures = True, 1000
            [finding] = check_shards(_with_shards(f"{server.url}/0.tar"))
            assert finding.verdict is PROBLEM
            assert "503" in finding.value

    def test_a_command_is_not_run(self, tmp_path: Path) -> None:
        [finding] = check_shards(_with_shards(f"pipe:touch {tmp_path / 'ran'}"))
        assert finding.verdict is WARNING
        assert not (tmp_path / "ran").exists()

    def test_reads_end_by_number_or_by_time_but_one_is_made(self, tmp_path: Path) -> None:
        class File:
            size = 7

            def read_at(self, offset: int, length: int) -> bytes:
                return bytes(self.size)

        (tmp_path / "x").write_bytes(bytes(7))
        now = time.perf_counter()
        assert storage._read_blocks({str(tmp_path / "x"): File()}, now + 60) == 2 * 7
        assert storage._read_blocks({str(tmp_path / "x"): File()}, now) == 7


class TestWriting:
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
    def test_speed(self, bytes_per_s: float, checkpoint: int | None, background: bool, verdict: Verdict) -> None:
        finding = check_write_speed("write", "x", bytes_per_s, checkpoint=checkpoint, background=background)
        assert finding.verdict is verdict
        assert ("takes" in finding.value) is (checkpoint is not None)

    @pytest.mark.parametrize(("free", "verdict"), [(4, OK), (3.9, WARNING), (2, WARNING), (1.9, PROBLEM)])
    def test_space_for_what_is_kept_and_one_more(self, free: float, verdict: Verdict) -> None:
        finding = check_space("room", int(free * GIB), checkpoint=GIB, kept=3)
        assert finding.verdict is verdict
        assert "3 checkpoints of 1 GiB and one under way: 4 GiB" in finding.value

    def test_all_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert measure_writing(tmp_path / "x") > 0
        assert (tmp_path / "x").stat().st_size == 2 << 16
        monkeypatch.setattr(storage, "_MAX_S", 0)
        measure_writing(tmp_path / "x")
        assert (tmp_path / "x").stat().st_size == 1 << 16

    def test_a_folder_is_tried_and_left_as_it_was(self, tmp_path: Path) -> None:
        read, written = check_folder(tmp_path)
        assert (read.name, written.name) == ("read", "write")
        assert read.value.startswith(f"{tmp_path}: ")
        assert written.measurement is not None
        assert list(tmp_path.iterdir()) == []

    def test_the_nearest_folder_that_is_there(self, tmp_path: Path) -> None:
        assert existing_parent(tmp_path / "a" / "b") == tmp_path
        assert existing_parent(tmp_path) == tmp_path

    def test_a_checkpoint_has_weights_moments_and_average(self) -> None:
        config = _config("ema=null")
        model = build_model(config.model, vocab_size=49408, seed=0)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert checkpoint_bytes(config) == 12 * parameters
        assert checkpoint_bytes(_config("ema={}")) == 16 * parameters

    def test_run_dir_holds_the_checkpoints(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        overrides = (f"run_dir={tmp_path}", "checkpoint.keep_last=2", "checkpoint.keep_every=10", "steps=40")
        monkeypatch.setattr(storage, "checkpoint_bytes", lambda config: 12 << 20)
        lines = _lines(check_run_folders(_config(*overrides)))
        assert set(lines) == {"write run_dir", "room in run_dir"}
        assert "6 checkpoints of 12 MiB" in lines["room in run_dir"].value
        assert list(tmp_path.iterdir()) == []

    def test_a_model_that_cannot_be_built_is_a_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(config: RunConfig) -> int:
            raise InputError("model.image.name=x: no such model")

        monkeypatch.setattr(storage, "checkpoint_bytes", fail)
        lines = _lines(check_run_folders(_config(f"run_dir={tmp_path}")))
        assert (lines["model"].verdict, lines["model"].value) == (PROBLEM, "model.image.name=x: no such model")
        assert lines["write run_dir"].verdict is not PROBLEM

    def test_checkpoints_elsewhere(self, tmp_path: Path) -> None:
        config = _config(f"run_dir={tmp_path / 'run'}", f"checkpoint.folder={tmp_path / 'saved'}")
        lines = _lines(check_run_folders(config))
        assert set(lines) == {"write run_dir", "write checkpoint.folder", "room in checkpoint.folder"}

    def test_a_store_is_written_read_and_cleared(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = _config(f"run_dir={tmp_path}", "checkpoint.folder=memory://doctor/run/")
        assert _lines(check_run_folders(config))["write checkpoint.folder"].verdict is not PROBLEM
        assert fsspec.filesystem("memory").find("/doctor") == []
        monkeypatch.setattr(storage, "read_file", lambda url: b"other")
        assert "is not what is read" in _lines(check_run_folders(config))["write checkpoint.folder"].value

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        [finding] = check_run_folders(_config("run_dir=/proc/none"))
        assert (finding.name, finding.verdict) == ("write run_dir", PROBLEM)
        assert finding.value.startswith("/proc/none: ")
        config = _config(f"run_dir={tmp_path}", "checkpoint.folder=https://127.0.0.1:9/x")
        assert _lines(check_run_folders(config))["write checkpoint.folder"].verdict is PROBLEM
        [finding] = check_folder(Path("/proc"))
        assert finding.verdict is PROBLEM
