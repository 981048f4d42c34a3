"""How many loader processes a rank needs (`data.workers: auto`): from the cost of a picture and the cores there are.

A rank gathers the `Cores` of all ranks, so that each knows its share of its machine, measures what reading a picture
costs, and chooses. The data order does not depend on the choice.
"""

import os
import socket
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from time import monotonic, process_time
from typing import NamedTuple

_MOST_PICTURES, _MOST_S = 64, 2.0
# Measured on a core of its own: with all of them busy, hyper-threads share units and caches, and pictures vary.
_HEADROOM = 1.25


class Cores(NamedTuple):
    """What one process may compute on; all ranks exchange theirs."""

    machine: str
    """Host name; containers on one machine count as machines, each with its own quota."""
    numbers: frozenset[int]
    """Logical cores on which the kernel may run it."""
    quota: float | None
    """Cores' worth of time that its container may use in all; None without a limit."""


class Choice(NamedTuple):
    """A number of loader processes."""

    workers: int
    """0: load in the training process."""
    why: str
    """One sentence with the figures."""


def own_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> Cores:
    """What this process may compute on.

    Args:
        cgroup: where the container's limits stand.
    """
    return Cores(socket.gethostname(), frozenset(os.sched_getaffinity(0)), _quota(cgroup))


def share_of_cores(own: Cores, of_all: Sequence[Cores]) -> float:
    """Cores for each of the processes that share them: srun gives each rank its own, torchrun all ranks the same.

    Args:
        own: of this process.
        of_all: of all ranks, this one's among them.
    """
    beside = [cores for cores in of_all if cores.machine == own.machine]
    share = sum(1 / sum(number in cores.numbers for cores in beside) for number in own.numbers)
    return share if own.quota is None else min(share, own.quota / len(beside))


def measure_picture(read: Callable[[int], object]) -> float:
    """CPU seconds for each picture, of at most 64 and about 2 seconds.

    Args:
        read: is called with 0, 1, ...; reads, decodes and tokenizes as a loader process does. The first call does not
            count: it opens shards and fills caches.
    """
    import torch  # here: `clipx data make`, which counts cores, starts without it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader process
    try:
        read(0)
        began, cpu_before = monotonic(), process_time()
        number = 0
        while number < _MOST_PICTURES and monotonic() - began < _MOST_S:
            number += 1
            read(number)
        return (process_time() - cpu_before) / number
    finally:
        torch.set_num_threads(threads)


def choose_workers(picture_s: float, *, cores: float, pace: float | None, slots: int, on_cpu: bool) -> Choice:
    """The fewest loader processes that keep up, one core left to training.

    Args:
        picture_s: CPU seconds to load a picture.
        cores: this rank's share of its machine.
        pace: pictures per second that this rank can train on at most; None where that is not known.
        slots: pictures of this rank in a batch, a process for each at most.
        on_cpu: whether training computes on these cores too. It then takes far longer for a picture than loading, and
            what a second loader process would take is taken from training.
    """
    cost = f"a picture takes {1000 * picture_s:.2f} ms of CPU"
    free = min(int(cores) - 1, slots)
    if free < 1:
        return Choice(0, f"data.workers: 0, in the training process: {cost}, and this rank has {cores:.3g} cores")
    if on_cpu:
        return Choice(1, f"data.workers: 1, since training takes the same {cores:.3g} cores: {cost}")
    if pace is None:
        return Choice(
            free, f"data.workers: {free}, all that can be spared: {cost}, and the pace of training is unknown"
        )
    wanted = max(1, ceil(pace * picture_s * _HEADROOM))
    needed = f"{cost}, and this rank trains on at most {pace:,.0f} pictures/s"
    if wanted <= free:
        return Choice(wanted, f"data.workers: {wanted}, the fewest that keep up: {needed}")
    most = free / (picture_s * _HEADROOM)
    return Choice(
        free,
        f"data.workers: {free}, all that can be spared of {cores:.3g} cores, too few to keep up: {needed}, of which "
        f"they load some {most:,.0f}",
    )


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time by the limits of cgroup version 2, else 1."""
    try:
        if (limits := cgroup / "cpu.max").exists():
            quota, period = limits.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError):  # nothing there, or nothing that is understood: no limit is known
        return None
