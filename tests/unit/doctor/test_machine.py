"""Cores, memory and limits, judged on both sides of each threshold; readings from made-up files."""

import resource
from pathlib import Path

import pytest

from clipx.doctor import machine
from clipx.doctor.findings import GIB, MIB, Verdict
from clipx.doctor.machine import (
    Memory,
    judge_cores,
    judge_infiniband,
    judge_memory,
    judge_open_files,
    judge_shared_memory,
    judge_tasks,
    look_at_host_name,
    look_at_infiniband,
    look_at_shared_memory,
    own_limits,
    own_memory,
)
from clipx.host import Cores

OK, WARNING, PROBLEM = Verdict
NO_LIMIT = resource.RLIM_INFINITY


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
    finding = judge_cores(cores, ranks_here=ranks_here, share=share, on_gpu=on_gpu)
    assert finding.verdict is verdict
    assert ("quota" in finding.found, "ranks" in finding.found) == (quota is not None, ranks_here > 1)


@pytest.mark.parametrize(
    ("available", "ranks_here", "verdict"),
    [(8, 2, OK), (7.9, 2, WARNING), (2, 2, WARNING), (1.9, 2, PROBLEM), (4, 1, OK)],
)
def test_memory(available: float, ranks_here: int, verdict: Verdict) -> None:
    finding = judge_memory(Memory(16 * GIB, int(available * GIB)), ranks_here=ranks_here)
    assert finding.verdict is verdict


def test_a_container_may_hold_less_memory_than_its_machine(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  900 kB\n")
    assert own_memory(meminfo, tmp_path) == (1_024_000, 921_600)
    (tmp_path / "memory.max").write_text("max\n")
    assert own_memory(meminfo, tmp_path) == (1_024_000, 921_600)
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("100000\n")
    assert own_memory(meminfo, tmp_path) == (500_000, 400_000)


@pytest.mark.parametrize(
    ("total", "free", "verdict"),
    [(1024, 1024, OK), (1023, 1023, WARNING), (64, 32, WARNING), (64, 31, PROBLEM), (4096, 31, PROBLEM)],
)
def test_shared_memory(total: int, free: int, verdict: Verdict) -> None:
    assert judge_shared_memory(total * MIB, free * MIB).verdict is verdict


def test_shared_memory_of_a_folder(tmp_path: Path) -> None:
    assert look_at_shared_memory(tmp_path / "none").verdict is PROBLEM
    assert "free of" in look_at_shared_memory(tmp_path).found


@pytest.mark.parametrize(
    ("most", "verdict"), [(NO_LIMIT, OK), (3072, OK), (3071, WARNING), (148, WARNING), (147, PROBLEM)]
)
def test_open_files(most: int, verdict: Verdict) -> None:
    finding = judge_open_files(most)
    assert finding.verdict is verdict
    assert finding.found == ("no limit" if most == NO_LIMIT else f"at most {most:,}")


@pytest.mark.parametrize(
    ("most", "ranks_here", "verdict"), [(NO_LIMIT, 8, OK), (2400, 8, OK), (2399, 8, WARNING), (300, 1, OK)]
)
def test_tasks(most: int, ranks_here: int, verdict: Verdict) -> None:
    assert judge_tasks(most, ranks_here=ranks_here).verdict is verdict


def test_limits_of_a_container_count(tmp_path: Path) -> None:
    assert own_limits(tmp_path).open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    (tmp_path / "pids.max").write_text("7\n")
    assert own_limits(tmp_path).tasks == 7


@pytest.mark.parametrize(
    ("locked", "kernel", "env", "verdicts"),
    [
        (NO_LIMIT, (5, 12), {}, [OK]),
        (8 * MIB, (5, 12), {}, [PROBLEM]),
        (NO_LIMIT, (5, 11), {}, [WARNING]),
        (NO_LIMIT, (5, 11), {"RDMAV_FORK_SAFE": "1"}, [OK]),
        (8 * MIB, (4, 18), {}, [PROBLEM, WARNING]),
    ],
)
def test_infiniband(locked: int, kernel: tuple[int, int], env: dict[str, str], verdicts: list[Verdict]) -> None:
    found = judge_infiniband(["mlx5_0"], locked_memory=locked, kernel=kernel, env=env)
    assert [finding.verdict for finding in found] == verdicts
    assert judge_infiniband([], locked_memory=locked, kernel=kernel, env=env) == []


def test_adapters_are_those_of_the_folder(tmp_path: Path) -> None:
    assert look_at_infiniband(tmp_path / "none") == []
    (tmp_path / "mlx5_1").mkdir()
    assert "mlx5_1" in look_at_infiniband(tmp_path)[0].found + str(look_at_infiniband(tmp_path))


def test_a_host_that_does_not_know_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise OSError("Name or service not known")

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(machine.socket, "gethostbyname", unknown)
    assert look_at_host_name().verdict is WARNING
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert look_at_host_name().verdict is OK
    monkeypatch.setattr(machine.socket, "gethostbyname", lambda name: "10.0.0.7")
    assert look_at_host_name().found.endswith("is 10.0.0.7")
