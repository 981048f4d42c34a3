"""Ranks that hang, each under its watchdog: the processes of `test_watchdog.py`.

They are forked from the server of `ranks.py`, and end as ranks do: by themselves, or not at all.
"""

import ctypes
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from distributed.ranks import PRELOAD
from torch.utils.data import DataLoader, Dataset

LIMIT_S = 3
SLOW_RANK = 3  # if there is one, it ends because the others say so
HANGS_AT = 4  # steps taken; the first two are given more time
GIL_GRACE_S = 2.0


class Case(NamedTuple):
    """What becomes of one of several ranks."""

    name: str
    rank: int
    """Which one hangs."""
    world_size: int


class Numbers(Dataset[int]):
    """One hangs, in a loader process."""

    def __init__(self, hangs_at: int | None) -> None:
        self.hangs_at = hangs_at

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, number: int) -> int:
        if number == self.hangs_at:
            read_that_never_returns()
        return number


def read_that_never_returns() -> None:
    """To be found in a stack."""
    time.sleep(600)


def start(case: Case, folder: Path) -> list[ForkServerProcess]:
    """All ranks of a case; what they print goes to rank-0.txt, ..., the reasons for status.json to reason-0.txt, ..."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    processes = [
        context.Process(target=_live, args=(case, rank, port, folder), name=f"{case.name} {rank}")
        for rank in range(case.world_size)
    ]
    for process in processes:
        process.start()
    return processes


def _live(case: Case, rank: int, port: int, folder: Path) -> None:
    """The life of one rank, as that of a run: data, step, data, step, ..."""
    from clipx.train.liveness import watchdog
    from clipx.train.liveness.heartbeat import HeartbeatExchange

    stderr = os.open(folder / f"rank-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stderr, 2)
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    watchdog._GIL_GRACE_S = GIL_GRACE_S
    store = dist.TCPStore("127.0.0.1", port, case.world_size, is_master=rank == 0)
    heartbeats = HeartbeatExchange(dist.PrefixStore("life", store.clone()), rank=rank, world_size=case.world_size)
    if rank == 0:
        heartbeats.open()
    dist.init_process_group("gloo", store=store, rank=rank, world_size=case.world_size)
    hangs = rank == case.rank
    guard = watchdog.Watchdog(
        stall_timeout_s=LIMIT_S if rank != SLOW_RANK else 50,
        timeout_s=60,
        rank=rank,
        run_dir=folder,
        heartbeats=heartbeats,
        on_stall=(folder / f"reason-{rank}.txt").write_text,
    )
    with guard:
        numbers = iter(loader(HANGS_AT if hangs and case.name == "read" else None))
        (folder / f"loader-{rank}.txt").write_text(str(multiprocessing.active_children()[0].pid))
        for step in range(100):
            guard.set_activity("data", step=step)
            next(numbers)
            guard.set_activity("step", step=step)
            if hangs and step == HANGS_AT:
                time.sleep(2 * watchdog._LOOK_EVERY_S)  # until it has been seen here
                hang(case.name)
            dist.all_reduce(torch.ones(1))


def loader(hangs_at: int | None) -> DataLoader[int]:
    """One loader process, which is one batch ahead."""
    return DataLoader(
        Numbers(hangs_at), batch_size=None, num_workers=1, prefetch_factor=1, multiprocessing_context="fork"
    )


def hang(how: str) -> None:
    """In the main thread."""
    match how:
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "alone":
            time.sleep(600)
        case "with the GIL":
            ctypes.PyDLL(None).sleep(600)
