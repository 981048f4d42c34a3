"""How ranks reach each other: latency and bandwidth of an all-reduce, each link of the ring, clocks, a shared folder.

Everything here is called by all ranks at the same time.
"""

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median, median_high
from typing import NamedTuple

import torch
from torch.distributed import ProcessGroup

from clipx.distributed.collectives import all_reduce, gather_objects, rank, ring_shift_async, world_size
from clipx.doctor.findings import MIB, Finding, ok, problem, rounded, speed, warning
from clipx.doctor.run_folder import existing_parent

_SMALL = 1024
_LARGE = {"cuda": 256 * MIB, "cpu": 16 * MIB}
_BLOCK = {"cuda": 64 * MIB, "cpu": 4 * MIB}
_SMALL_REPETITIONS, _FEWEST, _MOST, _MOST_S = 50, 3, 20, 5.0
# A step has some ten small collectives (statistics of the loss, the step's decision); at this they cost a step of
# 0.3 s some 5%. NCCL takes 0.02 to 0.1 ms on a machine and up to 0.5 ms over many, gloo about 1 ms.
_SLOW_LATENCY_S = {"cuda": 2e-3, "cpu": 20e-3}
# Bus bandwidth. Below PCIe 3.0 x16 (12 GB/s) less a half within a machine, below a 40 Gbit/s network between machines,
# something is not used that was paid for. gloo's copies reach 0.5 to 2 GB/s on a machine, 0.1 is a network of 1 Gbit/s.
_SLOW_BUS = {("cuda", True): 6e9, ("cuda", False): 5e9, ("cpu", True): 0.1e9, ("cpu", False): 0.1e9}
# Links of one kind are alike; half is a cable, a port or a card.
_SLOW_LINK = 0.5
# Logs of ranks no longer fit together; signatures of requests to stores are refused (Amazon from 15 minutes on).
_CLOCKS_DIFFER_S, _CLOCKS_WRONG_S = 1.0, 300.0
_CLOCK_READINGS = 5
_APPEARS_S = 5.0  # attribute caches of network file systems


class RankSpeeds(NamedTuple):
    """What was measured between the ranks, in seconds and bytes per second; the same on all of them."""

    latency_s: float
    """Of an all-reduce of 1 kB, median."""
    bandwidth: float
    """Of the bus: 2 (W - 1) / W times the bytes of a large all-reduce by its median time."""
    links: Sequence[float]
    """From rank i to rank i + 1 (the last to rank 0), all at the same time."""
    clock_offsets_s: Sequence[float]
    """Of each rank's clock against that of rank 0."""


def measure_ranks(group: ProcessGroup, device: torch.device, *, side: ProcessGroup) -> RankSpeeds:
    """Times collectives for some seconds.

    Args:
        group: all ranks, as they train.
        device: where their tensors are.
        side: all ranks, for objects.
    """
    size = world_size(group)
    latency_s = median(_times(lambda: _reduce(_SMALL, group, device), group, device, most=_SMALL_REPETITIONS))
    large = _LARGE[device.type]
    bandwidth = 2 * (size - 1) / size * large / median(_times(lambda: _reduce(large, group, device), group, device))
    block = torch.zeros(_BLOCK[device.type] // 4, device=device)

    def shift() -> None:
        ring_shift_async(block, group)()

    shift_s = median(_times(shift, group, device))
    latency_s, bandwidth = gather_objects((latency_s, bandwidth), side)[0]
    shifts_s = gather_objects(shift_s, side)
    # a rank's shift ends with the slower of what it sends and what it receives: a link is as fast as either end says
    links = [4 * block.numel() / min(shifts_s[i], shifts_s[(i + 1) % size]) for i in range(size)]
    return RankSpeeds(latency_s, bandwidth, links, _clock_offsets(side))


def judge_latency(latency_s: float, device: str) -> Finding:
    """Of small messages."""
    found = f"{rounded(1e3 * latency_s)} ms for 1 kB to all ranks and back"
    if latency_s > _SLOW_LATENCY_S[device]:
        return warning("latency", found, "other work on the cores or the network, or a slow interface: see bandwidth")
    return ok("latency", found)


def judge_bandwidth(bandwidth: float, device: str, *, size: int, one_machine: bool, gradient: int | None) -> Finding:
    """Of large messages.

    Args:
        bandwidth: of the bus, bytes per second.
        device: type of the ranks' device.
        size: ranks.
        one_machine: whether all are on one.
        gradient: bytes that a step reduces, where a config says so.
    """
    backend = "NCCL" if device == "cuda" else "gloo"
    found = f"{speed(bandwidth)} on the bus, {backend}, {size} ranks"
    if gradient is not None:
        gradient_s = 2 * (size - 1) / size * gradient / bandwidth
        found += f"; the gradient takes {rounded(1e3 * gradient_s)} ms a step"
    if bandwidth >= _SLOW_BUS[device, one_machine]:
        return ok("bandwidth", found)
    if device == "cpu":
        return warning("bandwidth", found, "name the fast interface in GLOO_SOCKET_IFNAME; train on GPUs with NCCL")
    if one_machine:
        advice = "GPUs do not reach each other: nvidia-smi topo -m; unset NCCL_P2P_DISABLE; enlarge /dev/shm"
        return warning("bandwidth", found, advice)
    advice = "run once with NCCL_DEBUG=INFO: NET/Socket says that InfiniBand, RoCE or EFA is not used (plugin, driver)"
    return warning("bandwidth", found, advice)


def judge_links(links: Sequence[float], hosts: Sequence[str]) -> Finding:
    """Whether a link of the ring is slower than the others of its kind, within a machine or between two.

    Args:
        links: from each rank to the next, bytes per second.
        hosts: of each rank.
    """
    size = len(links)
    ends = [(i, (i + 1) % size) for i in range(size)]
    slowest, share = 0, 1.0
    for inside in (True, False):
        kind = [i for i, (a, b) in enumerate(ends) if (hosts[a] == hosts[b]) == inside]
        if kind:
            typical, least = median_high(links[i] for i in kind), min(kind, key=links.__getitem__)
            if links[least] / typical < share:
                slowest, share = least, links[least] / typical
    a, b = ends[slowest]
    if share >= _SLOW_LINK:
        return ok("links", f"{speed(min(links))} to {speed(max(links))} from each rank to the next, all at once")
    found = f"rank {a} on {hosts[a]} to rank {b} on {hosts[b]}: {speed(links[slowest])}, {share:.0%} of what is usual"
    return warning("links", found, "a cable, a port, a card or another job on it: leave that machine out and run again")


def judge_clocks(offsets_s: Sequence[float], hosts: Sequence[str]) -> Finding:
    """Whether the machines agree on the time."""
    worst = max(range(len(offsets_s)), key=lambda i: abs(offsets_s[i]))
    apart = abs(offsets_s[worst])
    found = f"within {max(1.0, 1e3 * apart):,.0f} ms"
    if apart > _CLOCKS_DIFFER_S:
        found = f"{hosts[worst]} is {apart:,.1f} s from {hosts[0]}"
    advice = "start time synchronisation (chrony or systemd-timesyncd)"
    if apart > _CLOCKS_WRONG_S:
        return problem("clocks", found, f"{advice}: stores refuse requests of another time")
    if apart > _CLOCKS_DIFFER_S:
        return warning("clocks", found, f"{advice}: times in logs of different ranks do not fit together")
    return ok("clocks", found)


def measure_sharing(folder: Path, side: ProcessGroup) -> list[bool]:
    """Whether each rank sees a file that rank 0 makes in `folder`, or the nearest folder above it."""
    parent, token = existing_parent(folder), f".clipx-doctor-{secrets.token_hex(8)}"
    if rank(side) == 0:
        with suppress(OSError):  # then it is not there for rank 0 either
            (parent / token).touch()
    path = gather_objects(parent / token, side)[0]
    gives_up = time.monotonic() + _APPEARS_S
    while not os.path.exists(path) and time.monotonic() < gives_up:
        time.sleep(0.1)
    seen = gather_objects(os.path.exists(path), side)
    if rank(side) == 0:
        path.unlink(missing_ok=True)
    return seen


def judge_sharing(seen: Sequence[bool], hosts: Sequence[str], folder: str) -> Finding:
    """Whether all ranks write into the same folder."""
    name = "shared folder"
    if not seen[0]:
        return problem(name, f"{folder}: rank 0 cannot write there", "choose a folder that this user may write to")
    blind = sorted({host for host, sees in zip(hosts, seen, strict=True) if not sees})
    if blind:
        advice = "use a file system that all machines mount there: each rank writes its part of a checkpoint"
        return problem(name, f"{folder} on {', '.join(blind)} has not what rank 0 on {hosts[0]} writes there", advice)
    return ok(name, f"{folder}: all {len(seen)} ranks see what rank 0 writes")


def launcher_variables(env: Mapping[str, str]) -> str:
    """Where ranks meet, for a message about one that does not come."""
    return ", ".join(f"{name}={env.get(name, 'unset')}" for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"))


def _reduce(size: int, group: ProcessGroup, device: torch.device) -> None:
    all_reduce(torch.zeros(size // 4, device=device), "sum", group)


def _times(
    action: Callable[[], object], group: ProcessGroup, device: torch.device, *, most: int = _MOST
) -> list[float]:
    """Seconds of each repetition, as many on all ranks: fewer where one takes long."""
    _timed(action, device)  # connections are made, kernels loaded
    first = all_reduce(torch.tensor([_timed(action, device)], device=device), "max", group)
    repetitions = min(most, max(_FEWEST, int(_MOST_S / float(first))))
    return [_timed(action, device) for _ in range(repetitions)]


def _timed(action: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _clock_offsets(side: ProcessGroup) -> list[float]:
    """Of each rank against rank 0: the smallest of a few readings, each right after all ranks met."""
    readings = []
    for _ in range(_CLOCK_READINGS):
        all_reduce(torch.zeros(1), "sum", side)
        times = gather_objects(time.time(), side)
        readings.append([now - times[0] for now in times])
    return [min(of_rank, key=abs) for of_rank in zip(*readings, strict=True)]
