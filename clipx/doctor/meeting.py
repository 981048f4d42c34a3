"""The ranks that a launcher started come together, in bounded time; one that leaves later is named."""

import os
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
from clipx.doctor.agreement import Place
from clipx.doctor.bounded import Worker

JOIN_S = 120.0
"""Starting a process of a cold container on a network file system takes a minute at times."""
_LEAVE_S = 10.0

T = TypeVar("T")


@dataclass
class Meeting:
    """All ranks, reached from a thread of its own: a rank that hangs does not take this one with it."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: ProcessGroup | None = None
    """As ranks train; None: alone."""
    side: ProcessGroup | None = None
    """For objects and for asking who is there: always gloo."""
    rank: int = 0
    """0 to W-1."""
    places: tuple[Place, ...] = (Place("rank 0", ""),)
    """Of all ranks."""
    worker: Worker = field(default_factory=Worker)
    _joined: ExitStack = field(default_factory=ExitStack)

    @property
    def ranks_here(self) -> int:
        """Ranks on this rank's machine."""
        return sum(place.host == self.places[self.rank].host for place in self.places)

    @property
    def is_first_here(self) -> bool:
        """Whether this rank looks at what its machine has once."""
        own = self.places[self.rank].host
        return next(number for number, place in enumerate(self.places) if place.host == own) == self.rank

    def join(self) -> None:
        """Meets the ranks that the environment speaks of.

        Raises:
            HungError: not all came.
            Exception: torch's, for an address that cannot be reached, or a backend that does not start.
        """
        self.worker.call(self._join, 2 * JOIN_S)

    def gather(self, value: T, *, timeout_s: float) -> list[T]:
        """Every rank's value; those that are not there in time are named.

        Raises:
            HungError: a rank is not there in time.
            RuntimeError: the same, as gloo says it, with their numbers.
        """

        def exchange() -> list[T]:
            meet(self.side, timeout_s)
            return gather_objects(value, self.side)

        return self.worker.call(exchange, 2 * timeout_s)

    def leave(self) -> None:
        """Ends the group; one that hangs is left to the end of the process."""
        with suppress(Exception):  # whatever was wrong with it has been said
            self.worker.call(self._joined.close, _LEAVE_S)

    def _join(self) -> None:
        self.device, group = self._joined.enter_context(join_ranks())
        if group is None:
            return
        timeout = timedelta(seconds=JOIN_S)
        side = group if dist.get_backend(group) == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
        assert not isinstance(side, int)  # as for a rank outside the group
        meet(side, JOIN_S)
        hosts = gather_objects(socket.gethostname(), side)
        self.places = tuple(Place(f"rank {number}", host) for number, host in enumerate(hosts))
        self.group, self.side, self.rank = group, side, rank(group)


def expected_rank() -> int:
    """This rank's number before it met the others."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def meet(side: ProcessGroup | None, timeout_s: float) -> None:
    """Waits for all ranks.

    Raises:
        RuntimeError: on rank 0 with the numbers of those that did not come.
    """
    if world_size(side) > 1:
        dist.monitored_barrier(side, timeout=timedelta(seconds=timeout_s), wait_all_ranks=True)
