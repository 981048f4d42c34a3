"""How many nodes and processes a run is started on, and whether its batch divides evenly among them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from clipx.config.geometry import resolve_geometry
from clipx.config.schema import JobConfig, RunConfig
from clipx.errors import InputError

_OF_TORCHRUN = ("gpu", "auto")  # its words for the GPUs of a node
_COUNT = re.compile(r"([1-9]\d*)(?::([1-9]\d*))?")


@dataclass(frozen=True)
class Nodes:
    """The number of nodes of a run, or a range of numbers if the start is elastic."""

    minimum: int
    maximum: int

    @classmethod
    def parse(cls, text: str) -> "Nodes":
        """Reads `4`, or `2:4` for any number from 2 to 4.

        Raises:
            InputError: the text is neither.
        """
        match = _COUNT.fullmatch(text)
        nodes = cls(int(match[1]), int(match[2] or match[1])) if match else cls(0, 0)
        if not 0 < nodes.minimum <= nodes.maximum:
            raise InputError(f"nodes={text}: expected a number, 1 or more, or a range of torchrun, as 2:4")
        return nodes

    @property
    def elastic(self) -> bool:
        """Whether the number may change during the run."""
        return self.minimum < self.maximum

    def __str__(self) -> str:
        return f"{self.minimum}:{self.maximum}" if self.elastic else str(self.maximum)

    def one_number(self, launcher: str) -> int:
        """The number of nodes, for a launcher that takes no range.

        Raises:
            InputError: this is a range.
        """
        if self.elastic:
            raise InputError(
                f"nodes={self}: {launcher} starts a fixed number; give one, or use `clipx launch torchrun`"
            )
        return self.maximum


def nodes_from(environment: Mapping[str, str], option: str | None) -> Nodes:
    """The number of nodes: the option, else NNODES, else torchrun's own PET_NNODES, else 1."""
    return Nodes.parse(option or environment.get("NNODES") or environment.get("PET_NNODES") or "1")


def processes_from(environment: Mapping[str, str], option: int | None) -> int:
    """Processes per node: the option, else NPROC_PER_NODE or PET_NPROC_PER_NODE, else the GPUs of this node, else 1.

    Raises:
        InputError: the variable is no number.
    """
    named = environment.get("NPROC_PER_NODE") or environment.get("PET_NPROC_PER_NODE") or "gpu"
    if option is not None or named.isdecimal():
        return option or int(named)
    if named not in _OF_TORCHRUN:
        raise InputError(f"NPROC_PER_NODE={named}: expected a number, 1 or more, or {' or '.join(_OF_TORCHRUN)}")
    import torch

    return torch.cuda.device_count() or 1


def check_batch(config: JobConfig, nodes: Nodes, *, processes_per_node: int) -> None:
    """Checks that the batch divides evenly among the processes, before a job waits in a queue.

    Raises:
        InputError: it does not; names the nearest batch sizes that do, for a range with every number in it.
    """
    captions = config.data.captions_per_image
    batch = config.global_batch_size
    worlds = {count: count * processes_per_node for count in range(nodes.minimum, nodes.maximum + 1)}
    uneven = next((count for count, world in worlds.items() if batch % (world * captions)), None)
    if nodes.elastic and uneven is not None:
        unit = captions * math.lcm(*worlds.values())
        nearest = [value for value in (batch - batch % unit, batch - batch % unit + unit) if value > 0]
        raise InputError(
            f"nodes={nodes}: global_batch_size={batch} is not divisible by the {worlds[uneven]} processes of {uneven} "
            f"nodes; nearest that all numbers in the range divide: {', '.join(map(str, nearest))}"
        )
    for world in worlds.values():
        resolve_geometry(batch, config.micro_batch_size, world, captions_per_image=captions)
        if isinstance(config, RunConfig) and config.select is not None:
            config.select.super_batch_size(batch, world)
