"""The memory of one GPU by part, and the largest micro-batch that it leaves room for.

Parts are those that `micro_batch_size: auto` counts: a plan says what that will find, on a GPU known from its data
sheet alone. Loss and passes are assumed to reach their maximum at the same time, which is a little too much.
"""

from bisect import bisect_right
from dataclasses import asdict, dataclass, replace

from clipx.config.geometry import BatchGeometry, micro_batch_sizes, resolve_geometry
from clipx.config.parallel import Fsdp2Config
from clipx.config.schema import RunConfig
from clipx.distributed.hardware import Gpu
from clipx.distributed.parallelize import MEMORY_FRACTION, state_bytes
from clipx.objectives.build import loss_shape
from clipx.plan.model import PhaseModel
from clipx.plan.selection import choosing

CONTEXT_BYTES = 3 * 2**29
"""Bytes that CUDA, cuBLAS and NCCL take beside torch's allocator: an assumption, 1.5 GiB."""
_FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class MemoryParts:
    """Bytes of one GPU, by part."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    """The average of the weights, if the run has one."""
    gathered: float
    """Weights and gradients that FSDP2 gathers while they are used."""
    texts: float
    """All ranks' text embeddings, if they are gathered."""
    loss: float
    """Embeddings of this rank, their gradients, tiles of similarities."""
    choosing: float
    """Pixels and embeddings of the pairs from which a batch is chosen."""
    activations: float
    """A forward and backward pass over one micro-batch, including its half-precision copies of weights."""

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The memory of a GPU, and whether it is enough."""

    parts: MemoryParts
    geometry: BatchGeometry
    fits: bool
    available: float
    """Bytes for all parts: `MEMORY_FRACTION` of what `CONTEXT_BYTES` and the weights leave, and the weights."""


def plan_memory(config: RunConfig, model: PhaseModel, *, gpu: Gpu, world_size: int) -> MemoryPlan:
    """Estimates the memory with the config's micro-batch; if that is auto, the largest that fits, or the smallest.

    Raises:
        InputError: the ranks, or the micro-batch, do not divide the batch.
    """
    captions = config.data.captions_per_image
    geometry = resolve_geometry(
        config.global_batch_size, config.micro_batch_size, world_size, captions_per_image=captions
    )
    others = _without_activations(config, model, geometry)
    bare = gpu.memory_bytes - CONTEXT_BYTES - _FLOAT * model.num_parameters
    available = MEMORY_FRACTION * bare + _FLOAT * model.num_parameters
    if config.micro_batch_size == "auto":
        sizes = micro_batch_sizes(geometry.rank_batch_size, captions)
        num_fitting = bisect_right(sizes, available - others.total, key=model.pass_bytes)
        geometry = BatchGeometry(config.global_batch_size, world_size, sizes[max(1, num_fitting) - 1])
    parts = replace(others, activations=float(model.pass_bytes(geometry.micro_batch_size)))
    return MemoryPlan(parts=parts, geometry=geometry, fits=parts.total <= available, available=available)


def _without_activations(config: RunConfig, model: PhaseModel, geometry: BatchGeometry) -> MemoryParts:
    """All parts but the activations."""
    weights = _FLOAT * model.num_parameters
    share, gathered = 1.0, 0.0
    if isinstance(config.parallel, Fsdp2Config):
        share = 0.0 if config.parallel.cpu_offload else 1 / geometry.world_size
        state = state_bytes(
            model.objective.model,
            config=config.parallel,
            blocks=model.blocks(),
            world_size=geometry.world_size,
            extra_bytes=0,
        )
        gathered = state + weights - 2 * share * weights
    losses = model.objective.loss_cost(loss_shape(config, geometry))
    return MemoryParts(
        weights=share * weights,
        gradients=share * _FLOAT * model.num_trainable,
        optimizer=share * model.optimizer_bytes,
        average=share * weights if config.ema is not None else 0.0,
        gathered=gathered,
        texts=losses.gathered_bytes,
        loss=losses.working_bytes,
        choosing=choosing(config, model.phase, geometry).held_bytes,
        activations=0.0,
    )
