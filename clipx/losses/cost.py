"""What a loss takes on every rank: arithmetic, memory and communication, from shapes alone.

Shape suffixes: B local pairs, G global pairs, D embedding.
"""

from dataclasses import dataclass
from typing import Literal

Collective = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "shift"]
_FLOAT, _ID = 4, 8  # bytes
_TORCH_TILE, _KERNEL_TILE = 4096, 8192  # on CUDA; their squares are similarities (`clipx.losses.tiles`)
_TORCH_TILE_BYTES = 18
"""For each similarity, with all that stands beside it; of the costliest, the sigmoid loss with several positives."""


@dataclass(frozen=True, kw_only=True)
class LossShape:
    """What a loss is computed over."""

    rank_batch_size: int
    """B."""
    world_size: int
    embed_dim: int
    """D."""
    element_bytes: int
    """Bytes of an element of the embeddings: 4, or 2 in half precision."""
    captions_per_image: int = 1

    @property
    def global_batch_size(self) -> int:
        """G."""
        return self.rank_batch_size * self.world_size


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One kind of collective in a step."""

    part: str
    """What is moved, for a person."""
    collective: Collective
    payload: float
    """Bytes of the tensor of all ranks; a shift moves a W-th of it to the next rank, an all-to-all a W-th among all."""
    times: int
    """How often in one step."""
    behind: Literal["backward", "towers", ""] = ""
    """The arithmetic that goes on meanwhile: the last backward pass, all of the towers', or none."""


@dataclass(frozen=True, kw_only=True)
class LossCost:
    """One call of a loss, forward and backward, on every rank."""

    flops: float
    gathered_bytes: int
    """Embeddings of all ranks, if they are gathered."""
    working_bytes: int
    """Embeddings of this rank, their gradients, and what the loss holds meanwhile."""
    transfers: tuple[Transfer, ...]
    """In one step of more than one rank."""

    def __add__(self, other: "LossCost") -> "LossCost":
        return LossCost(
            flops=self.flops + other.flops,
            gathered_bytes=self.gathered_bytes + other.gathered_bytes,
            working_bytes=self.working_bytes + other.working_bytes,
            transfers=self.transfers + other.transfers,
        )


NO_COST = LossCost(flops=0.0, gathered_bytes=0, working_bytes=0, transfers=())
"""What an objective without coupled losses pays."""


def tiled_cost(
    shape: LossShape,
    *,
    num_products: int,
    num_passes: int,
    exchange: Literal["gather", "ring"],
    implementation: Literal["auto", "tiled", "triton"] = "tiled",
    with_ids: bool = True,
) -> LossCost:
    """The cost of a loss over all pairs that is computed in tiles from one exchange of the texts.

    It takes `num_products` matrix products of B x G x D, forward and backward together; in a ring the texts pass by
    `num_passes` times. Ids are those of samples, for losses that ask for them. Memory is that of float32.
    `clipx.losses.exchange` says what is moved.
    """
    pairs, texts = shape.global_batch_size, shape.global_batch_size * shape.embed_dim
    own = shape.rank_batch_size * shape.embed_dim
    num_similarities = shape.rank_batch_size * pairs
    if implementation == "triton" or (implementation == "auto" and shape.element_bytes < _FLOAT):
        tiles = shape.element_bytes * min(_KERNEL_TILE**2, num_similarities)
    else:
        tiles = _TORCH_TILE_BYTES * min(_TORCH_TILE**2, num_similarities)
    num_ids = 1 if shape.captions_per_image == 1 else 2
    ids = Transfer(part="ids of samples", collective="all-gather", payload=_ID * pairs, times=num_ids)
    embeddings, gradients = shape.element_bytes * texts, _FLOAT * texts
    if exchange == "gather":
        moved = (
            Transfer(part="texts", collective="all-gather", payload=embeddings, times=1),
            Transfer(part="gradients of texts", collective="reduce-scatter", payload=gradients, times=1),
        )
    else:
        steps = shape.world_size - 1
        moved = (
            Transfer(part="texts", collective="shift", payload=embeddings, times=num_passes * steps),
            Transfer(part="gradients of texts", collective="shift", payload=gradients, times=shape.world_size),
        )
    return LossCost(
        flops=2.0 * num_products * shape.rank_batch_size * texts,
        gathered_bytes=_FLOAT * texts if exchange == "gather" else 0,
        # both towers' embeddings, gradients and float32 sums; in a ring also texts and gradients on their way
        working_bytes=_FLOAT * (8 if exchange == "gather" else 10) * own + tiles,
        transfers=(ids, *moved) if with_ids else moved,
    )


def column_sums(shape: LossShape) -> Transfer:
    """The all-reduces, of a maximum and of a sum, that give a softmax over columns its denominators."""
    return Transfer(part="sums of columns", collective="all-reduce", payload=_FLOAT * shape.global_batch_size, times=2)
