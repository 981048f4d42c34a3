"""Cores, memory, shared memory and limits of the machine or container that this process is in."""

import os
import platform
import re
import resource
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipx.doctor.findings import GIB, MIB, Figure, Finding, num_bytes, ok, problem, warning
from clipx.host import Cores

# One trains, the others load: a picture takes 0.9 to 4.6 ms of a core (benchmarks/LOG.md), 3 cores load 650 to 3,300/s.
_CORES_PER_GPU = 4
# A rank with three loader processes holds 2 GB beside the model (the soak of benchmarks/LOG.md); twice that is calm.
_MEMORY_PER_RANK, _LEAST_MEMORY_PER_RANK = 4 * GIB, 1 * GIB
# What NCCL's guide asks containers for (--shm-size=1g). Pictures do not go through it (clipx.data.buffers), texts do.
_SHARED_MEMORY, _LEAST_SHARED_MEMORY = 1 * GIB, 32 * MIB
# A loader process keeps 1,024 shards open on a third of its descriptors, two for each (clipx.data.shards), at least 16.
_OPEN_FILES, _LEAST_OPEN_FILES = 3 * 1024, 3 * 16 + 100
# Threads of torch, NCCL and CUDA and of eight loader processes; a rank of the tests has 30 to 60.
_TASKS_PER_RANK = 300
# Before it, memory that a network card reads from was copied on write in a forked process, and went astray.
_FORK_SAFE_KERNEL = (5, 12)
_UNLIMITED = resource.RLIM_INFINITY


class Memory(NamedTuple):
    """Bytes that this process's container may hold in all, and that are free."""

    total: int
    available: int


class Limits(NamedTuple):
    """What the system grants a process of this user; -1 is no limit."""

    open_files: int
    """The hard limit: loader processes raise theirs to it."""
    tasks: int
    """Threads and processes together."""
    locked_memory: int
    """Bytes."""


def judge_cores(cores: Cores, *, ranks_here: int, share: float, on_gpu: bool) -> Finding:
    """Whether there are cores enough to train and to load.

    Args:
        cores: of this rank.
        ranks_here: ranks on this machine.
        share: cores of this rank alone.
        on_gpu: whether it trains on one.
    """
    quota = "" if cores.quota is None else f", a quota of {cores.quota:.3g}"
    each = "" if ranks_here == 1 else f", {share:.3g} for each of {ranks_here} ranks"
    found = f"{len(cores.numbers)} cores{quota}{each}"
    if share < 1:
        return problem("cores", found, "start fewer ranks on this machine, or ask for more cores")
    if cores.quota is not None and cores.quota < len(cores.numbers) / 2:
        advice = "libraries start a thread per core and are then throttled: set OMP_NUM_THREADS to the quota's share"
        return warning("cores", found, advice)
    if on_gpu and share < _CORES_PER_GPU:
        advice = f"a GPU wants {_CORES_PER_GPU} or more to load pictures for it; `clipx plan` says how many a run needs"
        return warning("cores", found, advice)
    return ok("cores", found)


def own_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> Memory:
    """Of the machine, or of the container where that may hold less."""
    stated = dict(re.findall(r"(\w+):\s+(\d+) kB", meminfo.read_text()))
    total, available = (int(stated[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = _number(cgroup / limit), _number(cgroup / used)
        if most is not None and most < total:
            total, available = most, min(available, most - (now or 0))
    return Memory(total, available)


def judge_memory(memory: Memory, *, ranks_here: int) -> Finding:
    """Whether ranks and their loader processes have room."""
    each = memory.available / ranks_here
    found = f"{num_bytes(memory.available)} free of {num_bytes(memory.total)}"
    figure = Figure(each, num_bytes(each))
    if each < _LEAST_MEMORY_PER_RANK:
        return problem("memory", found, "the kernel will end processes: free memory or start fewer ranks", figure)
    if each < _MEMORY_PER_RANK:
        return warning("memory", found, f"{num_bytes(_MEMORY_PER_RANK)} a rank is calm: lower data.workers", figure)
    return ok("memory", found, figure)


def judge_shared_memory(total: int, free: int) -> Finding:
    """/dev/shm, through which NCCL and loader processes hand things over."""
    found = f"{num_bytes(free)} free of {num_bytes(total)}"
    mend = "docker run --shm-size=8g (Kubernetes: an emptyDir of medium Memory at /dev/shm)"
    if free < _LEAST_SHARED_MEMORY:
        return problem("/dev/shm", found, f"a run would end with a bus error; make room in it, or {mend}")
    if total < _SHARED_MEMORY:
        return warning("/dev/shm", found, f"NCCL between several GPUs wants 1 GiB: {mend}")
    return ok("/dev/shm", found)


def look_at_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """As `judge_shared_memory`, of this machine."""
    if not folder.is_dir():
        return problem("/dev/shm", "not there", "mount a tmpfs at /dev/shm")
    state = os.statvfs(folder)
    return judge_shared_memory(state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize)


def own_limits(cgroup: Path = Path("/sys/fs/cgroup")) -> Limits:
    """Of this process."""
    tasks = [resource.getrlimit(resource.RLIMIT_NPROC)[1] if os.geteuid() else _UNLIMITED]  # root is exempt
    tasks += [most for name in ("pids.max", "pids/pids.max") if (most := _number(cgroup / name)) is not None]
    return Limits(
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        tasks=min((most for most in tasks if most != _UNLIMITED), default=_UNLIMITED),
        locked_memory=resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
    )


def judge_open_files(most: int) -> Finding:
    """Descriptors that a loader process may have."""
    found = _limit(most)
    if most != _UNLIMITED and most < _LEAST_OPEN_FILES:
        return problem("open files", found, "raise the hard limit: ulimit -Hn 65536 as root, or LimitNOFILE=")
    if most != _UNLIMITED and most < _OPEN_FILES:
        advice = f"loader processes keep only {most // 3} shards open: raise the hard limit to {_OPEN_FILES} or more"
        return warning("open files", found, advice)
    return ok("open files", found)


def judge_tasks(most: int, *, ranks_here: int) -> Finding:
    """Threads and processes that ranks and loaders may start."""
    needed = _TASKS_PER_RANK * ranks_here
    if most != _UNLIMITED and most < needed:
        advice = f"{needed} or more for {ranks_here} ranks: ulimit -u, docker run --pids-limit, podPidsLimit"
        return warning("processes and threads", _limit(most), advice)
    return ok("processes and threads", _limit(most))


def judge_infiniband(
    adapters: Sequence[str], *, locked_memory: int, kernel: tuple[int, int], env: Mapping[str, str]
) -> list[Finding]:
    """What network cards that read memory by themselves need; nothing to say without one."""
    if not adapters:
        return []
    name, found = "InfiniBand", f"{', '.join(adapters)}, locked memory {_limit(locked_memory, is_bytes=True)}"
    findings = []
    if locked_memory != _UNLIMITED:
        advice = "NCCL cannot register its buffers: ulimit -l unlimited (docker run --ulimit memlock=-1; slurm.conf: "
        findings.append(problem(name, found, advice + "PropagateResourceLimitsExcept=MEMLOCK)"))
    if kernel < _FORK_SAFE_KERNEL and not {"RDMAV_FORK_SAFE", "IBV_FORK_SAFE"} & set(env):
        advice = "loader processes are forked: export RDMAV_FORK_SAFE=1, or use Linux 5.12 or later"
        findings.append(warning(f"{name} and fork", f"Linux {kernel[0]}.{kernel[1]}", advice))
    return findings or [ok(name, found)]


def look_at_infiniband(folder: Path = Path("/sys/class/infiniband")) -> list[Finding]:
    """As `judge_infiniband`, of this machine."""
    adapters = sorted(os.listdir(folder)) if folder.is_dir() else []
    numbers = re.findall(r"\d+", platform.release())
    kernel = (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else _FORK_SAFE_KERNEL
    return judge_infiniband(adapters, locked_memory=own_limits().locked_memory, kernel=kernel, env=os.environ)


def look_at_host_name() -> Finding:
    """Whether this machine finds itself, by which gloo chooses its network."""
    name = socket.gethostname()
    try:
        return ok("host name", f"{name} is {socket.gethostbyname(name)}")
    except OSError:
        if os.environ.get("GLOO_SOCKET_IFNAME"):
            return ok("host name", f"{name} does not resolve; GLOO_SOCKET_IFNAME says which network to use")
        advice = "add it to /etc/hosts, or export GLOO_SOCKET_IFNAME=INTERFACE"
        return warning("host name", f"{name} does not resolve", advice)


def _limit(most: int, *, is_bytes: bool = False) -> str:
    if most == _UNLIMITED:
        return "no limit"
    return f"at most {num_bytes(most) if is_bytes else f'{most:,}'}"


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
