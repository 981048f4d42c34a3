"""How many nodes and processes a run is started on, and whether its batch falls evenly on them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from clipx.config.geometry import resolve_geometry
from clipx.config.schema import RunConfig
from clipx.errors import InputError

_COUNT = re.compile(r"([1-9]\d*)(?::([1-9]\d*))?")


@dataclass(frozen=True)
class Nodes:
    """Nodes that a run may have: `fewest` to `most`, the same number unless the start is elastic."""

    fewest: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "Nodes":
        """From `4`, or `2:4` where any number in between will do.

        Raises:
            InputError: it is neither.
        """
        match = _COUNT.fullmatch(text)
        nodes = cls(int(match[1]), int(match[2] or match[1])) if match else cls(0, 0)
        if not 0 < nodes.fewest <= nodes.most:
            raise InputError(f"nodes={text}: expected a number, 1 or more, or a range of torchrun, as 2:4")
        return nodes

    @property
    def elastic(self) -> bool:
        """Whether the number may change while the run goes on."""
        return self.fewest < self.most

    def __str__(self) -> str:
        return f"{self.fewest}:{self.most}" if self.elastic else str(self.most)

    def one_number(self, launcher: str) -> int:
        """The number, for a launcher that knows no ranges.

        Raises:
            InputError: it is a range.
        """
        if self.elastic:
            raise InputError(
                f"nodes={self}: {launcher} starts a fixed number; give one, or use `clipx launch torchrun`"
            )
        return self.most


def nodes_from(environment: Mapping[str, str], option: str | None) -> Nodes:
    """What was asked for: the option, else NNODES, else torchrun's own PET_NNODES, else one node."""
    return Nodes.parse(option or environment.get("NNODES") or environment.get("PET_NNODES") or "1")


def processes_from(environment: Mapping[str, str], option: int | None) -> int:
    """Processes per node: the option, else NPROC_PER_NODE or PET_NPROC_PER_NODE, else the GPUs of this node, or 1."""
    named = environment.get("NPROC_PER_NODE") or environment.get("PET_NPROC_PER_NODE") or ""
    if option is not None or named.isdecimal():
        return option or int(named)
    import torch

    return torch.cuda.device_count() or 1


def check_batch(config: RunConfig, nodes: Nodes, *, processes_per_node: int) -> None:
    """Refuses numbers of processes that do not divide the batch, before anything waits in a queue.

    Raises:
        InputError: naming the nearest batches that divide; for a range, those that every number in it divides.
    """
    captions = config.data.captions_per_image
    batch = config.global_batch_size
    worlds = {count: count * processes_per_node for count in range(nodes.fewest, nodes.most + 1)}
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
