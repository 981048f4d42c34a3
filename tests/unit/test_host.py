"""Cores and memory of the machine or container, read from made-up files of both versions of cgroup."""

import os
from pathlib import Path

import pytest

from clipx.host import Cores, own_cores, own_memory, rank_memory, share_of_cores

GIB = 1 << 30
V1_NO_LIMIT = "9223372036854771712"
# The same container in both versions: 2.5 cores, 8 GiB of which 5 are used, 2 of them for the file cache.
LIMITED = {
    "v2": {
        "cpu.max": "250000 100000\n",
        "memory.max": f"{8 * GIB}\n",
        "memory.current": f"{5 * GIB}\n",
        "memory.stat": f"anon {3 * GIB}\nfile {2 * GIB}\ninactive_file {2 * GIB}\nactive_file 0\n",
    },
    "v1": {
        "cpu/cpu.cfs_quota_us": "250000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": f"{8 * GIB}\n",
        "memory/memory.usage_in_bytes": f"{5 * GIB}\n",
        # a container with folders below it: its own pages are fewer than the total
        "memory/memory.stat": f"inactive_file 4096\ntotal_rss {3 * GIB}\ntotal_inactive_file {2 * GIB}\n",
    },
}
UNLIMITED = {
    "none": {},
    "v2": {
        "cpu.max": "max 100000\n",
        "memory.max": "max\n",
        "memory.current": f"{5 * GIB}\n",
        "memory.stat": "inactive_file 0\n",
    },
    "v1": {
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": f"{V1_NO_LIMIT}\n",
        "memory/memory.usage_in_bytes": f"{5 * GIB}\n",
        "memory/memory.stat": "total_inactive_file 0\n",
    },
    "nonsense": {"cpu.max": "nonsense", "memory.max": "nonsense"},
}


def cgroup_folder(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "cgroup"


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    """A machine of 64 GiB, 48 of them available."""
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal:  {64 << 20} kB\nMemFree:  1 kB\nMemAvailable:  {48 << 20} kB\nHugePages_Total: 0\n")
    return path


def cores(numbers: range, machine: str = "one", quota: float | None = None) -> Cores:
    return Cores(machine, frozenset(numbers), quota)


class TestContainers:
    @pytest.mark.parametrize("version", LIMITED)
    def test_both_versions_of_one_container_say_the_same(self, tmp_path: Path, meminfo: Path, version: str) -> None:
        cgroup = cgroup_folder(tmp_path, LIMITED[version])
        assert own_cores(cgroup).quota == 2.5
        assert own_memory(meminfo, cgroup) == (8 * GIB, 5 * GIB)  # 8 - 5 + 2 that the kernel gives back

    @pytest.mark.parametrize("version", UNLIMITED)
    def test_without_limits_the_machine_counts(self, tmp_path: Path, meminfo: Path, version: str) -> None:
        cgroup = cgroup_folder(tmp_path, UNLIMITED[version])
        assert own_cores(cgroup).quota is None
        assert own_memory(meminfo, cgroup) == (64 * GIB, 48 * GIB)

    @pytest.mark.parametrize("version", LIMITED)
    def test_a_full_machine_has_less_than_the_container_may_take(self, tmp_path: Path, version: str) -> None:
        meminfo = tmp_path / "meminfo"
        meminfo.write_text(f"MemTotal: {64 << 20} kB\nMemAvailable: {1 << 20} kB\n")
        assert own_memory(meminfo, cgroup_folder(tmp_path, LIMITED[version])) == (8 * GIB, 1 * GIB)

    def test_a_container_that_says_only_its_limit(self, tmp_path: Path, meminfo: Path) -> None:
        cgroup = cgroup_folder(tmp_path, {"memory.max": f"{8 * GIB}"})
        assert own_memory(meminfo, cgroup) == (8 * GIB, 8 * GIB)
        (cgroup / "memory.current").write_text(f"{9 * GIB}")
        assert own_memory(meminfo, cgroup) == (8 * GIB, 0)


def test_available_memory_is_shared_by_the_ranks_of_a_machine(
    tmp_path: Path, meminfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert rank_memory(meminfo, tmp_path / "none") == 48 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert rank_memory(meminfo, tmp_path / "none") == 6 * GIB


def test_half_of_the_memory_where_linux_says_nothing(tmp_path: Path) -> None:
    total, available = own_memory(tmp_path / "none", tmp_path)
    assert total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available == total // 2


def test_this_machine_has_memory_and_cores() -> None:
    memory = own_memory()
    assert 0 < memory.available <= memory.total
    assert own_cores().numbers == os.sched_getaffinity(0)
    assert own_cores().machine


def test_all_cores_count_where_none_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert own_cores().numbers == {0, 1, 2}


def test_ranks_that_may_use_the_same_cores_share_them() -> None:
    everywhere = [cores(range(64))] * 8 + [cores(range(64), "two")] * 2
    assert share_of_cores(everywhere[0], everywhere) == 8
    assert share_of_cores(everywhere[9], everywhere) == 32


def test_ranks_with_cores_of_their_own_keep_them() -> None:
    bound = [cores(range(16 * rank, 16 * rank + 16)) for rank in range(4)]
    assert [share_of_cores(own, bound) for own in bound] == [16] * 4
    overlapping = [cores(range(8)), cores(range(4, 12))]
    assert share_of_cores(overlapping[0], overlapping) == 4 + 4 / 2


def test_a_containers_quota_is_shared_by_its_ranks() -> None:
    pods = [cores(range(64), "pod", 12.0), cores(range(64), "pod", 12.0), cores(range(64), "other")]
    assert share_of_cores(pods[0], pods) == 6
    assert share_of_cores(pods[2], pods) == 64
