"""The ranks that a launcher started: they connect within a time limit, and one that leaves later is named."""

import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from clipx.distributed.collectives import gather_objects, rank, world_size
from clipx.distributed.runtime import join_ranks
from clipx.doctor.timeouts import Worker

JOIN_S = 120.0
"""Limit for connecting: a process of a cold container on a network file system can take a minute to start."""
_LEAVE_S = 10.0

T = TypeVar("T")


@dataclass
class ProcessGroups:
    """The process groups of all ranks, used from a thread of their own: a rank that hangs does not block this one."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: ProcessGroup | None = None
    """The group that training uses; None for a process alone."""
    gloo: ProcessGroup | None = None
    """All ranks over gloo, for objects and barriers; the same as `group` on CPUs."""
    rank: int = 0
    hosts: tuple[str, ...] = ("",)
    """Host name of each rank; empty for a process alone."""
    worker: Worker = field(default_factory=Worker)
    _joined: ExitStack = field(default_factory=ExitStack)

    @property
    def ranks_here(self) -> int:
        """Number of ranks on this rank's machine."""
        return self.hosts.count(self.hosts[self.rank])

    @property
    def is_first_here(self) -> bool:
        """Whether this rank is the first one of its machine, which checks what a machine has once."""
        return self.hosts.index(self.hosts[self.rank]) == self.rank

    @property
    def names(self) -> list[str]:
        """A name for each rank: rank 3 on HOST."""
        return [f"rank {number} on {host}" for number, host in enumerate(self.hosts)]

    def join(self) -> None:
        """Connects to the ranks that the environment names.

        Raises:
            HungError: not all ranks came in time.
            Exception: an error of torch: an address that cannot be reached, a backend that does not start.
        """
        self.worker.call(self._join, 2 * JOIN_S)

    def gather(self, value: T, *, timeout_s: float) -> list[T]:
        """Every rank's (picklable) value, in the order of ranks, on every rank.

        Raises:
            HungError: a rank did not come in time.
            RuntimeError: the same, in gloo's words, with the numbers of the missing ranks.
        """

        def exchange() -> list[T]:
            self.wait_for_all(timeout_s)
            return gather_objects(value, self.gloo)

        return self.worker.call(exchange, 2 * timeout_s)

    def leave(self) -> None:
        """Ends the groups; one that hangs is left to the end of the process."""
        with suppress(Exception):  # the report already says what is wrong with it
            self.worker.call(self._joined.close, _LEAVE_S)

    def wait_for_all(self, timeout_s: float) -> None:
        """Waits for all ranks; call it on the worker's thread.

        Raises:
            RuntimeError: on rank 0 with the numbers of the missing ranks.
        """
        if world_size(self.gloo) > 1:
            dist.monitored_barrier(self.gloo, timeout=timedelta(seconds=timeout_s), wait_all_ranks=True)

    def _join(self) -> None:
        self.device, group = self._joined.enter_context(join_ranks(patience=None))
        if group is None:
            return
        timeout = timedelta(seconds=JOIN_S)
        gloo = group if dist.get_backend(group) == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
        assert not isinstance(gloo, int)  # new_group's value for a rank outside the group
        self.gloo = gloo
        self.wait_for_all(JOIN_S)
        self.hosts = tuple(gather_objects(socket.gethostname(), gloo))
        self.group, self.rank = group, rank(group)
