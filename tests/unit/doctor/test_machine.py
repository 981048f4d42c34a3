"""Cores, memory, shared memory and decoding, on both sides of each threshold."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import CONFIG

from clipx.config.load import load_config
from clipx.doctor import machine
from clipx.doctor.finding import GIB, MIB, Verdict
from clipx.doctor.machine import check_cores, check_decode_speed, check_decoding, check_memory, check_shared_memory
from clipx.host import Cores, Memory

OK, WARNING, PROBLEM = Verdict


@pytest.mark.parametrize(
    ("quota", "ranks_here", "share", "on_gpu", "verdict"),
    [
        (None, 1, 8.0, True, OK),
        (None, 2, 4.0, True, OK),
        (None, 3, 3.9, True, WARNING),
        (None, 3, 3.9, False, OK),
        (None, 8, 1.0, False, OK),
        (None, 9, 0.9, False, PROBLEM),
        (4.0, 1, 4.0, False, OK),
        (3.9, 1, 3.9, False, WARNING),
    ],
)
def test_cores(quota: float | None, ranks_here: int, share: float, on_gpu: bool, verdict: Verdict) -> None:
    cores = Cores("a", frozenset(range(8)), quota)
    finding = check_cores(cores, ranks_here=ranks_here, share=share, on_gpu=on_gpu)
    assert finding.verdict is verdict
    assert ("quota" in finding.value, "ranks" in finding.value) == (quota is not None, ranks_here > 1)


@pytest.mark.parametrize(
    ("available", "ranks_here", "verdict"),
    [(8, 2, OK), (7.9, 2, WARNING), (2, 2, WARNING), (1.9, 2, PROBLEM), (4, 1, OK)],
)
def test_memory(available: float, ranks_here: int, verdict: Verdict) -> None:
    finding = check_memory(Memory(16 * GIB, int(available * GIB)), ranks_here=ranks_here)
    assert finding.verdict is verdict


@pytest.mark.parametrize(
    ("total", "free", "verdict"),
    [(1024, 1024, OK), (1023, 1023, WARNING), (64, 32, WARNING), (64, 31, PROBLEM), (4096, 31, PROBLEM)],
)
def test_shared_memory(total: int, free: int, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    status = SimpleNamespace(f_blocks=total, f_bavail=free, f_frsize=MIB)
    monkeypatch.setattr(machine.os, "statvfs", lambda folder: status)
    finding = check_shared_memory(Path("/"))
    assert finding.verdict is verdict
    assert ("--shm-size" in finding.hint) is (verdict is not OK)


def test_shared_memory_that_is_not_there(tmp_path: Path) -> None:
    assert check_shared_memory(tmp_path / "none").verdict is PROBLEM
    assert "free of" in check_shared_memory(tmp_path).value


@pytest.mark.parametrize(
    ("images_per_s", "has_simplejpeg", "verdict", "hint"),
    [(190, True, OK, ""), (189, True, WARNING, "data.decode=scaled"), (190, False, WARNING, "pip install simplejpeg")],
)
def test_decode_speed(images_per_s: float, has_simplejpeg: bool, verdict: Verdict, hint: str) -> None:
    finding = check_decode_speed(images_per_s, 224, has_simplejpeg=has_simplejpeg)
    assert (finding.verdict, hint in finding.hint) == (verdict, True)
    assert "1,000 pairs/s take 2.5 cores" in check_decode_speed(500, 224, has_simplejpeg=True).value


def test_decoding_is_measured_at_the_size_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(read) -> float:
        read(0)
        return 1e-3

    monkeypatch.setattr(machine, "measure_image", measure)
    config = load_config([CONFIG], ["data.train=[none.tar]"])
    finding = check_decoding(config)
    assert finding.value.startswith("1,000 pictures/s a core")
    assert f"to {config.model.image.image_size} px" in finding.value
    assert "to 224 px" in check_decoding(None).value
