"""Forward passes side by side, whose bits do not depend on how many there are.

A matrix product on a CPU has other bits with another number of threads or rows (torch 2.15 with MKL; measured: both
change the last ones). So a block of rows is always one forward pass of its own, in one thread; several cores compute
several blocks side by side.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.distributed import ProcessGroup

from clipx.data.parallel import num_cores
from clipx.distributed.collectives import gather_objects
from clipx.host import own_cores, share_of_cores

Block = TypeVar("Block")
Result = TypeVar("Result")

ON_DEVICE = 2
"""Threads for a GPU: the host has the next block ready when the device is done with one."""


def num_threads(model: nn.Module, device: torch.device) -> int:
    """How many threads compute blocks with a model; one if it is in training mode, for each would switch its modes."""
    if any(module.training for module in model.modules()):
        return 1
    return num_cores() if device.type == "cpu" else ON_DEVICE


def cores_of_rank(group: ProcessGroup | None) -> int:
    """This rank's share of its machine's cores, at least one; all ranks of the group call it."""
    cores = own_cores()
    return max(1, int(share_of_cores(cores, gather_objects(cores, group))))


def side_by_side(
    work: Callable[[Block], Result], blocks: Iterable[Block], *, device: torch.device, threads: int
) -> Generator[Result]:
    """Yields `work(block)` for each block, in their order, computed by threads.

    While it lasts, torch computes with one thread per operation if the model is on a CPU.

    Args:
        work: a forward pass.
        blocks: taken when their turn comes near, in the caller's thread.
        device: of the model.
        threads: how many.
    """
    with (
        one_thread(device.type == "cpu"),
        ThreadPoolExecutor(threads, initializer=_start_thread, initargs=(device,)) as pool,
    ):
        pending: deque[Future[Result]] = deque()
        try:
            for block in blocks:
                pending.append(pool.submit(work, block))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread(on: bool) -> Iterator[None]:
    """Within the block torch computes with one thread per operation in this thread, if `on`."""
    before = torch.get_num_threads()
    if on:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_thread(device: torch.device) -> None:
    """Gives a new thread what torch keeps for each thread by itself."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    elif device.type == "cuda":
        torch.cuda.set_device(device)
