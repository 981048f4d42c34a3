"""Divides the global batch among ranks and micro-batches: the person sets G, and hardware never changes it."""

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
        """k: with 1 the step has one forward pass, with more it uses the gradient cache."""
        return self.rank_batch_size // self.micro_batch_size


def resolve_geometry(
    global_batch_size: int, micro_batch_size: int | Literal["auto"], world_size: int, *, captions_per_image: int = 1
) -> BatchGeometry:
    """Checks that W divides G and m divides G/W ("auto": all of it), all in pairs, without parting an image's captions.

    Raises:
        InputError: a size does not divide; the message has the nearest sizes that do.
    """
    unit = world_size * captions_per_image
    if global_batch_size % unit:
        lower = global_batch_size - global_batch_size % unit
        nearest = [value for value in (lower, lower + unit) if value > 0]
        captions = f" with {captions_per_image} captions per image" if captions_per_image > 1 else ""
        raise InputError(
            f"global_batch_size={global_batch_size} is not divisible by the {world_size} processes{captions}; "
            f"nearest that are: {', '.join(map(str, nearest))}"
        )
    rank_batch_size = global_batch_size // world_size
    size = rank_batch_size if micro_batch_size == "auto" else micro_batch_size
    if rank_batch_size % size or size % captions_per_image:
        divisors = micro_batch_sizes(rank_batch_size, captions_per_image)
        below = [d for d in divisors if d < size][-1:]
        above = [d for d in divisors if d > size][:1]
        multiple = f", a multiple of data.captions_per_image={captions_per_image}" if captions_per_image > 1 else ""
        raise InputError(
            f"micro_batch_size={size} does not divide the {rank_batch_size} pairs of a rank "
            f"(global_batch_size={global_batch_size} over {world_size} processes{multiple}); "
            f"nearest that do: {', '.join(map(str, below + above))}"
        )
    return BatchGeometry(global_batch_size, world_size, size)


def micro_batch_sizes(rank_batch_size: int, captions_per_image: int = 1) -> list[int]:
    """The allowed sizes of a micro-batch in pairs, ascending."""
    sizes = range(captions_per_image, rank_batch_size + 1, captions_per_image)
    return [size for size in sizes if rank_batch_size % size == 0]
