"""What choosing batches takes: forward passes over all that is read, similarities, what is held and what is moved."""

from dataclasses import dataclass
from math import sqrt

from clipx.config.geometry import BatchGeometry
from clipx.config.phases import Phase
from clipx.config.schema import RunConfig
from clipx.losses.cost import Transfer
from clipx.objectives.flops import scored_image_flops
from clipx.objectives.objective import Objective

_FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """The choice of a step's pairs, on every rank."""

    flops: float
    """Of similarities with the chosen."""
    held_bytes: float
    """Pixels of the pairs that it has read, once more while they are put together; embeddings of all ranks."""
    transfers: tuple[Transfer, ...]


def scoring_flops(config: RunConfig, objective: Objective, phase: Phase, *, tokens: int) -> float:
    """FLOPs of the learner's forward passes over the pairs that are read, for each pair that is trained on."""
    select = config.select
    if select is None or not select.needs_learner:
        return 0.0
    image = scored_image_flops(select, objective.model, phase)
    text = objective.flops.text.forward(num_texts=1, num_tokens=tokens, sum_squared_lengths=tokens**2)
    return (image + text) * config.pairs_read / config.global_batch_size


def choosing(config: RunConfig, phase: Phase, geometry: BatchGeometry) -> Choosing:
    """What a step's choice takes; a reference is assumed to be as wide as the learner."""
    select = config.select
    if select is None:
        return Choosing(flops=0.0, held_bytes=0.0, transfers=())
    read, width = config.pairs_read, config.model.embed_dim
    models = select.needs_learner + select.needs_reference
    embeddings = 2 * models * read * width * (_FLOAT if config.precision == "fp32" else 2)
    pixels = 3 * phase.image_size**2
    # chosen pairs in their order stand mostly where they were read: one deviation of their number in half of all
    moved = sqrt(geometry.global_batch_size * (1 - geometry.global_batch_size / read)) / 2
    return Choosing(
        flops=2.0 * 2 * models * read / geometry.world_size * geometry.global_batch_size * width,
        held_bytes=2 * read / geometry.world_size * pixels + embeddings,
        transfers=(
            Transfer(part="embeddings to choose from", collective="all-gather", payload=embeddings, times=1),
            Transfer(part="scores", collective="all-gather", payload=_FLOAT * read, times=select.chunks),
            Transfer(part="chosen pairs", collective="shift", payload=geometry.world_size * moved * pixels, times=1),
        ),
    )
