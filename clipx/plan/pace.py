"""How long a step takes: arithmetic at a stated share of the peak, the optimizer, and what communication adds."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipx.config.geometry import BatchGeometry
from clipx.config.schema import RunConfig
from clipx.losses.cost import Transfer
from clipx.objectives.build import loss_shape
from clipx.plan.cluster import Cluster, sent_bytes
from clipx.plan.memory import Memory
from clipx.plan.model import PhaseModel

_BACKWARD = 2 / 3  # of the arithmetic of a training pass


@dataclass(frozen=True, kw_only=True)
class Communication:
    """One part of a step's communication."""

    part: str
    collective: str
    times: int
    sent_bytes: float
    """By each GPU in a step."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of one step on every GPU, and what follows."""

    useful_s: float
    """The model's own arithmetic."""
    recomputed_s: float
    """Work done again, for activation checkpointing and the gradient cache."""
    loss_s: float
    """Similarities and their gradients."""
    optimizer_s: float
    """Reading and writing weights, gradients and moments at the memory's speed."""
    communication_s: float
    """In all."""
    exposed_s: float
    """What of it no arithmetic hides: DDP's hides behind the last backward pass, FSDP2's behind the towers'
    arithmetic, the loss's behind none."""
    step_s: float
    least_step_s: float
    """If all communication were hidden."""
    most_step_s: float
    """If none were."""
    pairs_per_s: float
    """Of all GPUs."""
    efficiency: float
    """Share of the step that is the model's own arithmetic."""
    communication: tuple[Communication, ...]


def plan_pace(
    config: RunConfig,
    model: PhaseModel,
    *,
    cluster: Cluster,
    geometry: BatchGeometry,
    memory: Memory,
    moved: Sequence[Transfer],
) -> Pace:
    """The step of one phase."""
    peak = cluster.gpu.fp32_flops if config.precision == "fp32" else cluster.gpu.bf16_flops
    speed = cluster.mfu * peak
    useful_s = geometry.rank_batch_size * model.work.useful / speed
    again = model.work.recomputed + model.work.again(geometry.num_micro_batches)
    recomputed_s = geometry.rank_batch_size * again / speed
    loss_s = model.objective.loss_cost(loss_shape(config, geometry)).flops / speed
    optimizer_s = _optimizer_traffic(memory) / cluster.gpu.memory_bytes_per_s
    seconds = [
        transfer.times * cluster.seconds(transfer.collective, transfer.payload, world_size=geometry.world_size)
        for transfer in moved
    ]
    towers_s = useful_s + recomputed_s
    windows = {"backward": _BACKWARD * towers_s / geometry.num_micro_batches, "towers": towers_s, "": 0.0}
    exposed_s = sum(
        max(0.0, sum(s for s, transfer in zip(seconds, moved, strict=True) if transfer.behind == name) - window)
        for name, window in windows.items()
    )
    arithmetic_s = towers_s + loss_s + optimizer_s
    step_s = arithmetic_s + exposed_s
    return Pace(
        useful_s=useful_s,
        recomputed_s=recomputed_s,
        loss_s=loss_s,
        optimizer_s=optimizer_s,
        communication_s=sum(seconds),
        exposed_s=exposed_s,
        step_s=step_s,
        least_step_s=max(arithmetic_s, sum(seconds)),
        most_step_s=arithmetic_s + sum(seconds),
        pairs_per_s=geometry.global_batch_size / step_s,
        efficiency=useful_s / step_s,
        communication=tuple(
            Communication(
                part=transfer.part,
                collective=transfer.collective,
                times=transfer.times,
                sent_bytes=transfer.times
                * sent_bytes(transfer.collective, transfer.payload, world_size=geometry.world_size),
                seconds=s,
            )
            for s, transfer in zip(seconds, moved, strict=True)
        ),
    )


def _optimizer_traffic(memory: Memory) -> float:
    """Bytes: gradients are read for their norm, read and written to be clipped, and read by the optimizer, which reads
    and writes weights and moments; the average is read and written, and weights are read for it."""
    average = 2 * memory.average + (memory.weights if memory.average else 0.0)
    return 4 * memory.gradients + 2 * (memory.weights + memory.optimizer) + average
