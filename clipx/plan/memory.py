"""The memory of one GPU by part, and the largest micro-batch that it leaves room for.

Parts are those that `micro_batch_size: auto` reckons with: a plan says what that will find, on a GPU that is at hand
only in the data sheet. Loss and passes are taken to be at their height together, which is a little too much.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from clipx.config.geometry import BatchGeometry, micro_batch_sizes, resolve_geometry
from clipx.config.parallel import Fsdp2Config
from clipx.config.schema import RunConfig
from clipx.distributed.hardware import Gpu
from clipx.distributed.memory import MEMORY_FRACTION, state_bytes
from clipx.objectives.build import loss_shape
from clipx.plan.model import PhaseModel

CONTEXT_BYTES = 3 * 2**29
"""What CUDA, cuBLAS and NCCL take beside torch's allocator: an assumption, 1.5 GiB."""
_FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one GPU."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    """Of the weights, where the run keeps one."""
    gathered: float
    """Weights and gradients that FSDP2 holds whole, for the time of their use."""
    texts: float
    """All ranks' text embeddings, where they are gathered."""
    loss: float
    """Embeddings of this rank, their gradients, tiles of similarities."""
    activations: float
    """A forward and backward pass over one micro-batch, its narrow copies of weights included."""

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What stands on a GPU, and whether it fits."""

    parts: Memory
    geometry: BatchGeometry
    fits: bool
    available: float
    """Bytes for all parts: `MEMORY_FRACTION` of what `CONTEXT_BYTES` and the weights leave, and the weights."""


def plan_memory(config: RunConfig, model: PhaseModel, *, gpu: Gpu, world_size: int) -> MemoryPlan:
    """With the micro-batch of the config, or the largest that fits, or the smallest where none does.

    Raises:
        InputError: the ranks, or the micro-batch, do not divide the batch.
    """
    captions = config.data.captions_per_image
    whole = resolve_geometry(config.global_batch_size, config.micro_batch_size, world_size, captions_per_image=captions)
    beside = _beside(config, model, whole)
    bare = gpu.memory_bytes - CONTEXT_BYTES - _FLOAT * model.num_parameters
    available = MEMORY_FRACTION * bare + _FLOAT * model.num_parameters
    size = whole.micro_batch_size
    if config.micro_batch_size == "auto":
        sizes = micro_batch_sizes(whole.rank_batch_size, captions)
        size = _largest(sizes, model, room=available - beside.total)
    parts = Memory(**asdict(beside) | {"activations": float(model.pass_bytes(size))})
    geometry = BatchGeometry(config.global_batch_size, world_size, size)
    return MemoryPlan(parts=parts, geometry=geometry, fits=parts.total <= available, available=available)


def _largest(sizes: Sequence[int], model: PhaseModel, *, room: float) -> int:
    return sizes[max(1, bisect_right(sizes, room, key=model.pass_bytes)) - 1]


def _beside(config: RunConfig, model: PhaseModel, geometry: BatchGeometry) -> Memory:
    """All but the activations."""
    whole = _FLOAT * model.num_parameters
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
        gathered = state + whole - 2 * share * whole
    losses = model.objective.loss_cost(loss_shape(config, geometry))
    return Memory(
        weights=share * whole,
        gradients=share * _FLOAT * model.num_trainable,
        optimizer=share * model.optimizer_bytes,
        average=share * whole if config.ema is not None else 0.0,
        gathered=gathered,
        texts=losses.gathered_bytes,
        loss=losses.working_bytes,
        activations=0.0,
    )
