"""How fast the ranks reach each other, and whether they all see the run's folder.

All ranks call the functions that measure, at the same time.
"""

import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch
from torch.distributed import ProcessGroup

from clipx.distributed.collectives import all_reduce, gather_objects, rank, world_size
from clipx.doctor.finding import MIB, Finding, ok, problem, speed, warning
from clipx.doctor.storage import existing_parent

_LARGE = {"cuda": 256 * MIB, "cpu": 16 * MIB}
_MIN_REPETITIONS, _MAX_REPETITIONS, _MAX_S = 3, 20, 5.0
# Bus bandwidth. Below half of PCIe 3.0 x16 (12 GB/s) within a machine, or below a 40 Gbit/s network between machines,
# faster links are not used. gloo's copies reach 0.5 to 2 GB/s on a machine, and 0.1 is a network of 1 Gbit/s.
_SLOW_BUS = {("cuda", True): 6e9, ("cuda", False): 5e9, ("cpu", True): 0.1e9, ("cpu", False): 0.1e9}
_APPEARS_S = 5.0  # attribute caches of network file systems


def measure_bandwidth(group: ProcessGroup, device: torch.device, *, gloo: ProcessGroup) -> float:
    """Times large all-reduces for a few seconds.

    Returns:
        Bytes per second on the bus, the same on all ranks: 2 (W - 1) / W times the bytes of an all-reduce, by its
        median seconds.
    """
    num_bytes, size = _LARGE[device.type], world_size(group)

    def reduce() -> float:
        began = time.perf_counter()
        all_reduce(torch.zeros(num_bytes // 4, device=device), "sum", group)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    reduce()  # makes connections, loads kernels
    slowest = all_reduce(torch.tensor([reduce()], device=device), "max", group)
    repetitions = min(_MAX_REPETITIONS, max(_MIN_REPETITIONS, int(_MAX_S / float(slowest))))  # the same on all ranks
    seconds = median(reduce() for _ in range(repetitions))
    bandwidth: float = gather_objects(2 * (size - 1) / size * num_bytes / seconds, gloo)[0]
    return bandwidth


def check_bandwidth(bandwidth: float, device: str, *, num_ranks: int, one_machine: bool) -> Finding:
    """Whether large messages between the ranks are fast enough; `bandwidth` is bytes per second on the bus."""
    backend = "NCCL" if device == "cuda" else "gloo"
    value = f"{speed(bandwidth)} on the bus, {backend}, {num_ranks} ranks"
    if bandwidth >= _SLOW_BUS[device, one_machine]:
        return ok("bandwidth", value)
    if device == "cpu":
        return warning("bandwidth", value, "name the fast interface in GLOO_SOCKET_IFNAME; train on GPUs with NCCL")
    if one_machine:
        hint = "GPUs do not reach each other: nvidia-smi topo -m; unset NCCL_P2P_DISABLE; enlarge /dev/shm"
        return warning("bandwidth", value, hint)
    hint = (
        "run once with NCCL_DEBUG=INFO: NET/Socket says that InfiniBand, RoCE or EFA is not used (plugin, driver, "
        "ulimit -l unlimited); or look for a slow machine by leaving machines out"
    )
    return warning("bandwidth", value, hint)


def measure_sharing(folder: Path, gloo: ProcessGroup) -> list[bool]:
    """Whether each rank sees a file that rank 0 makes in `folder`, or in the nearest folder above it that exists."""
    own = existing_parent(folder) / f".clipx-doctor-{secrets.token_hex(8)}"
    if rank(gloo) == 0:
        with suppress(OSError):  # then rank 0 does not see it either
            own.touch()
    path: Path = gather_objects(own, gloo)[0]
    deadline = time.monotonic() + _APPEARS_S
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.1)
    seen: list[bool] = gather_objects(os.path.exists(path), gloo)
    if rank(gloo) == 0:
        path.unlink(missing_ok=True)
    return seen


def check_sharing(seen: Sequence[bool], hosts: Sequence[str], folder: str) -> Finding:
    """Whether all ranks write into the same folder: each sees what rank 0 writes."""
    blind = sorted({host for host, sees in zip(hosts, seen, strict=True) if not sees})
    if blind:
        value = f"{folder}: a file that rank 0 on {hosts[0]} writes is not there on {', '.join(blind)}"
        hint = "use a writable folder that all machines mount: each rank writes its part of a checkpoint"
        return problem("shared folder", value, hint)
    return ok("shared folder", f"{folder}: all {len(seen)} ranks see what rank 0 writes")
