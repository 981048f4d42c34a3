"""Config and cluster to plan: every phase of the run on the GPUs asked for, and the same run on 8 to 1,024."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from clipx.config.phases import Phase, check_stages, phase_at
from clipx.config.schema import RunConfig
from clipx.distributed.block_transforms import compiles
from clipx.errors import InputError
from clipx.models.vision_tower import check_stage_inputs
from clipx.objectives.build import build_objective
from clipx.objectives.objective import BuildObjective
from clipx.plan.cluster import Cluster
from clipx.plan.communication import transfers
from clipx.plan.gpus import check_gpus
from clipx.plan.loader import Loader, plan_loader
from clipx.plan.memory import MemoryPlan, plan_memory
from clipx.plan.model import PhaseModel, Work
from clipx.plan.pace import Pace, plan_pace

WORLD_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
_FLOAT = 4  # bytes
_MIN_SHARE = 0.25  # of the model's own arithmetic
Limit = Literal["memory", "loader", "communication", "optimizer", "arithmetic"]


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Facts that a person gives and the config does not."""

    cluster: Cluster
    caption_tokens: int
    """Tokens of a caption on average, start and end included."""
    cpu_s: float
    """Seconds of a core to load an image."""
    bytes_per_sample: float
    """Bytes of a sample in the shards."""
    write_bytes_per_s: float
    """Speed of the storage that holds checkpoints."""
    price_per_gpu_hour: float | None


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """A range of steps that are alike."""

    phase: Phase
    first_step: int
    parameters: dict[str, int]
    """Number of parameters by part of the model."""
    num_trainable: int
    work: Work
    compiled: bool
    """Whether its blocks are compiled, if that is possible there."""
    counted_flops: float
    """FLOPs of a pair by torch's counter in our towers, without the gradient cache."""
    memory: MemoryPlan
    pace: Pace
    loader: Loader
    pairs_per_s: float
    """The pace of the slower of GPUs and loader."""
    limit: Limit
    """The part to improve first."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckpointCost:
    """The checkpoint of the last phase."""

    num_bytes: int
    seconds: float
    """Time to write it."""
    share: float
    """Share of the time of the run, if steps wait for it."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The run on `world_size` GPUs."""

    world_size: int
    phases: tuple[PhasePlan, ...]
    days: float
    """Time of training alone: starts, evaluations and saves come on top."""
    gpu_hours: float
    cost: float | None
    """Cost in the currency of the price."""
    checkpoint: CheckpointCost

    @property
    def heaviest(self) -> PhasePlan:
        """The phase that takes the most memory: the run fits if this phase does."""
        return max(self.phases, key=lambda part: part.memory.parts.total)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The run on the GPUs asked for, and on other numbers of GPUs."""

    asked: RunPlan
    others: tuple[RunPlan, ...]
    left_out: dict[int, str]
    """The numbers of GPUs that cannot run it, and why."""


def make_plan(
    config: RunConfig, assumptions: Assumptions, *, world_size: int, build: BuildObjective = build_objective
) -> Plan:
    """Estimates everything, without a GPU and without data; most of the time goes into passes without arithmetic.

    Raises:
        InputError: the model cannot be built, or GPUs or micro-batches do not divide the batch.
    """
    check_stages(config)
    check_gpus(config, world_size)
    models = list(_models(config, assumptions.caption_tokens, build))
    check_stage_inputs(models[0][1].objective.model.image_tower, config.stages)
    others, left_out = list[RunPlan](), dict[int, str]()
    asked = _plan_run(config, assumptions, models, world_size=world_size)
    for number in WORLD_SIZES:
        try:
            check_gpus(config, number)
            others.append(_plan_run(config, assumptions, models, world_size=number))
        except InputError as problem:
            left_out[number] = str(problem)
    return Plan(asked=asked, others=tuple(others), left_out=left_out)


def _models(config: RunConfig, caption_tokens: int, build: BuildObjective) -> Iterator[tuple[int, PhaseModel]]:
    """Each phase's first step and model."""
    step = 0
    while step < config.num_steps:
        phase = phase_at(config, step)
        yield step, PhaseModel(config, phase, caption_tokens=caption_tokens, build=build)
        step = phase.until


def _plan_run(
    config: RunConfig, assumptions: Assumptions, models: Sequence[tuple[int, PhaseModel]], *, world_size: int
) -> RunPlan:
    phases = tuple(
        _plan_phase(config, assumptions, model, first_step=first_step, world_size=world_size)
        for first_step, model in models
    )
    seconds = sum(part.seconds for part in phases)
    gpu_hours = world_size * seconds / 3600
    price = assumptions.price_per_gpu_hour
    return RunPlan(
        world_size=world_size,
        phases=phases,
        days=seconds / 86400,
        gpu_hours=gpu_hours,
        cost=None if price is None else price * gpu_hours,
        checkpoint=_checkpoint(
            config, assumptions, models[-1][1], step_s=config.global_batch_size / phases[-1].pairs_per_s
        ),
    )


def _plan_phase(
    config: RunConfig, assumptions: Assumptions, model: PhaseModel, *, first_step: int, world_size: int
) -> PhasePlan:
    memory = plan_memory(config, model, gpu=assumptions.cluster.gpu, world_size=world_size)
    pace = plan_pace(
        config,
        model,
        cluster=assumptions.cluster,
        geometry=memory.geometry,
        memory=memory.parts,
        moved=transfers(config, model, memory.geometry),
    )
    loader = plan_loader(
        config,
        pairs_per_s=pace.pairs_per_s,
        world_size=world_size,
        cpu_s=assumptions.cpu_s,
        bytes_per_sample=assumptions.bytes_per_sample,
    )
    per_picture = config.data.captions_per_image * config.global_batch_size / config.pairs_read
    loaded = inf if loader.most_pictures_per_s is None else loader.most_pictures_per_s * per_picture
    pairs_per_s = min(pace.pairs_per_s, loaded)
    return PhasePlan(
        phase=model.phase,
        first_step=first_step,
        parameters=model.parameters,
        num_trainable=model.num_trainable,
        work=model.work,
        compiled=compiles(config, device_type="cuda", image_flops=model.objective.flops.image, world_size=world_size),
        counted_flops=model.counted_flops,
        memory=memory,
        pace=pace,
        loader=loader,
        pairs_per_s=pairs_per_s,
        limit=_limit(memory, pace, is_loader_slower=pairs_per_s < pace.pairs_per_s),
        seconds=(model.phase.until - first_step) * config.global_batch_size / pairs_per_s,
    )


def _limit(memory: MemoryPlan, pace: Pace, *, is_loader_slower: bool) -> Limit:
    """The most urgent limit; arithmetic if nothing else takes a quarter of its time."""
    if not memory.fits:
        return "memory"
    if is_loader_slower:
        return "loader"
    lost: dict[Limit, float] = {
        "communication": pace.exposed_s,
        "memory": pace.recomputed_s,
        "optimizer": pace.optimizer_s,
    }
    worst = max(lost, key=lambda limit: lost[limit])
    return worst if lost[worst] > _MIN_SHARE * pace.useful_s else "arithmetic"


def _checkpoint(config: RunConfig, assumptions: Assumptions, model: PhaseModel, *, step_s: float) -> CheckpointCost:
    copies = 1 if config.ema is None else 2
    num_bytes = copies * _FLOAT * model.num_parameters + model.optimizer_bytes
    seconds = num_bytes / assumptions.write_bytes_per_s
    every_s = (config.checkpoint.every_steps * step_s, 60 * config.checkpoint.every_minutes)
    between_s = min((interval for interval in every_s if interval), default=inf)
    return CheckpointCost(num_bytes=num_bytes, seconds=seconds, share=seconds / (between_s + seconds))
