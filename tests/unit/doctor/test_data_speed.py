"""Decoding and reading: judged on made-up values, measured on small files."""

import json
import time
from pathlib import Path

import pytest
import torch
from servers import WebServer
from shard_files import write_shards
from tiny import CONFIG

from clipx.config.load import load_config
from clipx.doctor import data
from clipx.doctor.data import (
    ReadSpeed,
    judge_decoder,
    judge_decoding,
    judge_reading,
    look_at_decoding,
    look_at_folder,
    look_at_shards,
)
from clipx.doctor.findings import Verdict

OK, WARNING, PROBLEM = Verdict
FAST = ReadSpeed(alone=100e6, together=60e6, answer_s=0.25)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_MOST_READS", 2)
    monkeypatch.setattr(data, "_SCRATCH", 2 * data.MIB)


def _config(*shards: object):
    return load_config([CONFIG], [f"data.train={json.dumps(list(map(str, shards)))}"])


@pytest.mark.parametrize(("pictures_per_s", "verdict"), [(190, OK), (189, WARNING)])
def test_decoding(pictures_per_s: float, verdict: Verdict) -> None:
    assert judge_decoding(pictures_per_s, 224).verdict is verdict
    assert "1,000 pairs/s take 2.5 cores" in judge_decoding(500, 224).found


def test_the_decoder_is_named() -> None:
    assert judge_decoder(present=True).verdict is OK
    assert judge_decoder(present=False).advice == "pip install simplejpeg"


def test_decoding_is_measured_at_the_size_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure(read) -> float:
        read(0)
        seen.append(torch.get_num_threads())
        return 1e-3

    monkeypatch.setattr(data, "measure_picture", measure)
    speed, decoder = look_at_decoding(_config("none.tar"))
    assert "1,000 pictures/s a core" in speed.found
    assert f"to {_config('none.tar').model.image.image_size} px" in speed.found
    assert decoder.name == "simplejpeg"
    assert "to 224 px" in look_at_decoding(None)[0].found


@pytest.mark.parametrize(
    ("found", "verdict", "advice"),
    [
        (FAST, OK, ""),
        (FAST._replace(together=59e6), WARNING, "data.cache.folder"),
        (FAST._replace(answer_s=0.26), WARNING, "read_ahead_batches"),
    ],
)
def test_reading(found: ReadSpeed, verdict: Verdict, advice: str) -> None:
    finding = judge_reading("read", found)
    assert finding.verdict is verdict
    assert advice in finding.advice


def test_local_shards_are_read(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [3, 3])
    [finding] = look_at_shards(_config(tmp_path))
    assert finding.found.startswith("2 shards: ")
    assert finding.figure is not None
    assert finding.figure.value > 0
    Path(paths[0]).write_bytes(b"")
    Path(paths[1]).write_bytes(b"")
    [finding] = look_at_shards(_config(tmp_path))
    assert (finding.verdict, "the file is empty" in finding.found) == (PROBLEM, True)


def test_shards_that_are_not_there_are_a_problem(tmp_path: Path) -> None:
    [finding] = look_at_shards(_config(tmp_path / "{0..3}.tar"))
    assert finding.verdict is PROBLEM
    assert "match no tar file" in finding.found


def test_a_web_server_is_read_by_ranges_or_said_to_have_none(tmp_path: Path) -> None:
    content = Path(write_shards(tmp_path, [2])[0]).read_bytes()
    with WebServer({"0.tar": content}) as server:
        [finding] = look_at_shards(_config(f"{server.url}/0.tar"))
        assert finding.found.startswith("1 shards: ")
        server.ranges = False
        [finding] = look_at_shards(_config(f"{server.url}/0.tar"))
        assert finding.verdict is WARNING
        assert "without ranges" in finding.found
        server.ranges, server.failures = True, 1000
        [finding] = look_at_shards(_config(f"{server.url}/0.tar"))
        assert finding.verdict is PROBLEM
        assert "503" in finding.found


def test_a_command_is_not_run(tmp_path: Path) -> None:
    [finding] = look_at_shards(_config(f"pipe:touch {tmp_path / 'ran'}"))
    assert finding.verdict is WARNING
    assert not (tmp_path / "ran").exists()


def test_reads_end_by_number_or_by_time_but_one_is_made() -> None:
    now = time.perf_counter()
    assert data._until(now + 60, lambda number: number) == [0, 1]
    assert data._until(now, lambda number: 7) == [7]


def test_a_folder_is_read_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_at_folder(tmp_path).figure is not None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "big").write_bytes(bytes(data._BLOCK))
    monkeypatch.setattr(data.tempfile, "NamedTemporaryFile", None)  # what lies there is enough
    assert look_at_folder(tmp_path).found.startswith(f"{tmp_path}: ")
    assert look_at_folder(tmp_path / "none").verdict is PROBLEM
