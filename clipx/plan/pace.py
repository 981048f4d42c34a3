"""How long a step takes: arithmetic at an assumed share of the peak, the optimizer, and what communication adds."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipx.config.geometry import BatchGeometry
from clipx.config.schema import RunConfig
from clipx.losses.cost import Transfer
from clipx.objectives.build import loss_shape
from clipx.plan.cluster import Cluster, sent_bytes
from clipx.plan.memory import MemoryParts
from clipx.plan.model import PhaseModel
from clipx.plan.selection import choosing

_BACKWARD = 2 / 3  # of the arithmetic of a training pass


@dataclass(frozen=True, kw_only=True)
class Communication:
    """One part of a step's communication."""

    part: str
    collective: str
    times: int
    sent_bytes: float
    """Bytes that each GPU sends in a step."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of one step, the same on every GPU, and what follows from them."""

    useful_s: float
    """The model's own arithmetic."""
    recomputed_s: float
    """Work done again, for activation checkpointing and the gradient cache."""
    loss_s: float
    """Similarities and their gradients."""
    choosing_s: float
    """Scores of the pairs that are read, where a batch is chosen from them."""
    optimizer_s: float
    """Reading and writing weights, gradients and moments at the memory's speed, and the arithmetic of Muon."""
    muon_flops: float
    """Arithmetic of Muon on the busiest GPU; its time is part of `optimizer_s`."""
    muon_s: float
    communication_s: float
    """All communication."""
    exposed_s: float
    """The communication that no arithmetic hides: DDP's runs beside the last backward pass, FSDP2's beside the towers'
    arithmetic, the loss's beside nothing."""
    step_s: float
    least_step_s: float
    """The step if all communication were hidden."""
    most_step_s: float
    """The step if no communication were hidden."""
    pairs_per_s: float
    """Pairs that all GPUs train on."""
    efficiency: float
    """Share of the step that is the model's own arithmetic."""
    communication: tuple[Communication, ...]


def plan_pace(
    config: RunConfig,
    model: PhaseModel,
    *,
    cluster: Cluster,
    geometry: BatchGeometry,
    memory: MemoryParts,
    moved: Sequence[Transfer],
) -> Pace:
    """Estimates the step of one phase, in which the collectives `moved` happen."""
    speed = cluster.mfu * (cluster.gpu.fp32_flops if config.precision == "fp32" else cluster.gpu.bf16_flops)
    useful_s = geometry.rank_batch_size * model.work.useful / speed
    again = model.work.recomputed + model.work.again(geometry.num_micro_batches)
    recomputed_s = geometry.rank_batch_size * again / speed
    loss_s = model.objective.loss_cost(loss_shape(config, geometry)).flops / speed
    choosing_s = (geometry.rank_batch_size * model.work.scoring + choosing(config, model.phase, geometry).flops) / speed
    muon_flops, _ = model.optimizer_work(geometry.world_size)
    muon_s = muon_flops / (cluster.mfu * cluster.gpu.bf16_flops)  # in every precision of the towers
    optimizer_s = _optimizer_traffic(memory) / cluster.gpu.memory_bytes_per_s + muon_s
    parts = [(_communication(transfer, cluster, geometry.world_size), transfer) for transfer in moved]
    communication_s = sum(part.seconds for part, _ in parts)
    towers_s = useful_s + recomputed_s
    hidden_s = {"backward": _BACKWARD * towers_s / geometry.num_micro_batches, "towers": towers_s, "": 0.0}
    exposed_s = sum(
        max(0.0, sum(part.seconds for part, transfer in parts if transfer.behind == behind) - seconds)
        for behind, seconds in hidden_s.items()
    )
    arithmetic_s = towers_s + loss_s + choosing_s + optimizer_s
    step_s = arithmetic_s + exposed_s
    return Pace(
        useful_s=useful_s,
        recomputed_s=recomputed_s,
        loss_s=loss_s,
        choosing_s=choosing_s,
        optimizer_s=optimizer_s,
        muon_flops=muon_flops,
        muon_s=muon_s,
        communication_s=communication_s,
        exposed_s=exposed_s,
        step_s=step_s,
        least_step_s=max(arithmetic_s, communication_s),
        most_step_s=arithmetic_s + communication_s,
        pairs_per_s=geometry.global_batch_size / step_s,
        efficiency=useful_s / step_s,
        communication=tuple(part for part, _ in parts),
    )


def _communication(transfer: Transfer, cluster: Cluster, world_size: int) -> Communication:
    kind, payload = transfer.collective, transfer.payload
    return Communication(
        part=transfer.part,
        collective=kind,
        times=transfer.times,
        sent_bytes=transfer.times * sent_bytes(kind, payload, world_size=world_size),
        seconds=transfer.times * cluster.seconds(kind, payload, world_size=world_size),
    )


def _optimizer_traffic(memory: MemoryParts) -> float:
    """Bytes that the optimizer reads and writes.

    Gradients are read for their norm, read and written to be clipped, and read by the optimizer, which reads and writes
    weights and moments; the average is read and written, and weights are read for it.
    """
    average = 2 * memory.average + (memory.weights if memory.average else 0.0)
    return 4 * memory.gradients + 2 * (memory.weights + memory.optimizer) + average
