"""The machine or container that this process runs in: its cores, its memory, and the end of its parent process.

A container, or a job of a scheduler, may use less than its machine has. Linux says so in the files of cgroup version 2
or, on older systems, version 1; both are read here and give the same answers. Nothing here needs torch.
"""

import ctypes
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


class Cores(NamedTuple):
    """The cores that one process may compute on; all ranks exchange theirs."""

    machine: str
    """Host name; containers on one machine count as machines, each with its own quota."""
    numbers: frozenset[int]
    """Logical cores on which the kernel may run the process."""
    quota: float | None
    """Cores' worth of time that its container may use in all; None means no limit."""


class Memory(NamedTuple):
    """Memory of the machine, or of the container if that may hold less, in bytes."""

    total: int
    available: int
    """What can still be taken, the reclaimable file cache included."""


def own_cores(cgroup: Path = _CGROUP) -> Cores:
    """The cores that this process may compute on.

    Args:
        cgroup: folder with the container's limits.
    """
    if hasattr(os, "sched_getaffinity"):
        numbers = frozenset(os.sched_getaffinity(0))
    else:  # macOS
        numbers = frozenset(range(os.cpu_count() or 1))
    return Cores(socket.gethostname(), numbers, _quota(cgroup))


def share_of_cores(own: Cores, of_all: Sequence[Cores]) -> float:
    """Number of cores for each of the processes that share them.

    srun gives each rank its own cores, torchrun gives all ranks the same.

    Args:
        own: cores of this process.
        of_all: cores of all ranks, including this one.
    """
    same_machine = [cores for cores in of_all if cores.machine == own.machine]
    share = sum(1 / sum(number in cores.numbers for cores in same_machine) for number in own.numbers)
    return share if own.quota is None else min(share, own.quota / len(same_machine))


def own_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> Memory:
    """Memory of the machine, or of the container if that may hold less.

    Args:
        meminfo: Linux's table of the machine's memory.
        cgroup: folder with the container's limits.
    """
    total, available = _machine_memory(meminfo)
    limit = _first_number(cgroup, "memory.max", "memory/memory.limit_in_bytes")
    if limit is not None:
        used = _first_number(cgroup, "memory.current", "memory/memory.usage_in_bytes") or 0
        total = min(total, limit)
        available = min(available, max(0, limit - used + _file_cache(cgroup)))
    return Memory(total, available)


def rank_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Bytes that each rank on this machine may still take: an equal share of what is available."""
    return own_memory(meminfo, cgroup).available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _machine_memory(meminfo: Path) -> tuple[int, int]:
    """(total, available) bytes; without Linux's table half of the memory counts as available."""
    try:
        rows = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.MULTILINE))
        return 1024 * int(rows["MemTotal"]), 1024 * int(rows["MemAvailable"])
    except (OSError, KeyError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total // 2


def _file_cache(cgroup: Path) -> int:
    """Bytes of the container's usage that the kernel takes back when they are needed.

    Version 1 also counts each folder without those below it; its totals are what version 2 says.
    """
    for name, key in (("memory.stat", "inactive_file"), ("memory/memory.stat", "total_inactive_file")):
        rows = re.findall(rf"^{key} (\d+)$", _text(cgroup / name), re.MULTILINE)
        if rows:
            return int(rows[0])
    return 0


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time that the container may use; None means no limit, or none that is understood."""
    quota, _, period = _text(cgroup / "cpu.max").partition(" ")
    if not quota:
        quota, period = (_text(cgroup / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if not quota.isdecimal() or not period.isdecimal():  # "max" in version 2, -1 in version 1
        return None
    return int(quota) / int(period)


def _first_number(cgroup: Path, *names: str) -> int | None:
    """The number in the first file that exists; None if it says "max", or if no file exists.

    Version 1 writes a number beyond any machine's memory instead of "max".
    """
    text = next((text for name in names if (text := _text(cgroup / name))), "")
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    """The file's text, stripped; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def end_with_parent(parent_end_signal: signal.Signals) -> None:
    """Makes Linux send a signal to this process when the thread that started it ends; does nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, parent_end_signal)
