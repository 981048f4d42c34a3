"""How the global batch falls on ranks and micro-batches: the person sets G, hardware never changes it."""

from dataclasses import dataclass
from typing import Literal

from clipx.errors import InputError


@dataclass(frozen=True)
class BatchGeometry:
    """G pairs per step = `world_size` ranks x `num_micro_batches` x `micro_batch_size`."""

    global_batch_size: int
    world_size: int
    micro_batch_size: int

    @property
    def rank_batch_size(self) -> int:
        """b: pairs per rank and step."""
        return self.global_batch_size // self.world_size

    @property
    def num_micro_batches(self) -> int:
        """k: 1 is the plain step, more is the gradient cache."""
        return self.rank_batch_size // self.micro_batch_size


def resolve_geometry(global_batch_size: int, micro_batch_size: int | Literal["auto"], world_size: int) -> BatchGeometry:
    """Checks that W divides G and m divides G/W.

    Raises:
        InputError: naming the nearest values that divide.
    """
    if global_batch_size % world_size:
        lower = global_batch_size - global_batch_size % world_size
        nearest = [value for value in (lower, lower + world_size) if value > 0]
        raise InputError(
            f"global_batch_size={global_batch_size} is not divisible by the {world_size} processes; "
            f"nearest that are: {', '.join(map(str, nearest))}"
        )
    rank_batch_size = global_batch_size // world_size
    size = rank_batch_size if micro_batch_size == "auto" else micro_batch_size
    if rank_batch_size % size:
        divisors = [d for d in range(1, rank_batch_size + 1) if rank_batch_size % d == 0]
        below = [d for d in divisors if d < size][-1:]
        above = [d for d in divisors if d > size][:1]
        raise InputError(
            f"micro_batch_size={size} does not divide the {rank_batch_size} pairs of a rank "
            f"(global_batch_size={global_batch_size} over {world_size} processes); "
            f"nearest that do: {', '.join(map(str, below + above))}"
        )
    return BatchGeometry(global_batch_size, world_size, size)
