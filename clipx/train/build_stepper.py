"""Objective to step: what happens to its model before it trains, the optimizer, the size of a micro-batch."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from clipx.config.data import StreamConfig, device_part, sources
from clipx.config.geometry import micro_batch_sizes, resolve_geometry
from clipx.config.optim import TimmOptimConfig
from clipx.config.parallel import Fsdp2Config
from clipx.config.phases import TOWERS, Phase
from clipx.config.run_length import RunLength
from clipx.config.schema import JobConfig
from clipx.data.columns import blank_columns
from clipx.distributed.block_transforms import checkpoint_blocks, compile_blocks, compiles, float8_blocks
from clipx.distributed.parallelize import parallelize, state_bytes
from clipx.distributed.runtime import Runtime
from clipx.errors import InputError
from clipx.models.choose_attention import choose_attention
from clipx.models.clip import CLIP
from clipx.models.dry_run import DryRun, dry_run
from clipx.models.half_weights import HalfWeights
from clipx.models.vision_tower import check_stage_inputs
from clipx.objectives.build import loss_shape
from clipx.objectives.objective import Objective
from clipx.optim.ema import Ema
from clipx.optim.optimizers import build_optimizer, optimizer_bytes
from clipx.optim.param_groups import lock
from clipx.optim.schedules import build_schedule
from clipx.train.build_selection import build_selector, check_selection, selection_bytes, selection_of
from clipx.train.micro_batch import largest_micro_batch
from clipx.train.step import Stepper
from clipx.types import Batch

log = logging.getLogger(__name__)

_TENSOR_CORE_SIZE = 64  # bf16 elements of a row that a product's tile takes at once (128 bytes)


def check_step(config: JobConfig, runtime: Runtime, objective: Objective) -> None:
    """Looks before any work at what a step of a later phase would find.

    Raises:
        InputError: a loss that this device cannot run, an optimizer that takes no shards, a stage whose inputs the
            image tower does not take, fp8 that is not to be compiled, or batches that cannot be chosen.
    """
    objective.check(runtime.device)
    check_selection(config, objective)
    _is_compiled(config, runtime, objective)
    model = objective.model
    _warn_of_batch_statistics(config, runtime, model)
    slow = odd_sizes([block for blocks in objective.block_lists() for block in blocks])
    if slow and runtime.device.type == "cuda" and runtime.is_main:
        log.warning(
            "channels of %s are no multiples of %d, so tensor cores stay idle in part; choose widths that are",
            ", ".join(map(str, slow)),
            _TENSOR_CORE_SIZE,
        )
    if isinstance(config.optim, TimmOptimConfig) and isinstance(config.parallel, Fsdp2Config):
        from clipx.optim.from_timm import check_sharded

        check_sharded(config.optim)
    check_stage_inputs(model.image_tower, config.stages)


def _warn_of_batch_statistics(config: JobConfig, runtime: Runtime, model: CLIP) -> None:
    towers = {"image": model.image_tower, "text": model.text_tower}
    learning = {"image": config.optim.image, "text": config.optim.text}
    modules = [module for name in TOWERS if learning[name].locked_steps != "all" for module in towers[name].modules()]
    kinds = {type(module).__name__ for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    if kinds and runtime.is_main:
        log.warning(
            "%s has %s: it normalises by the pairs of one rank and micro-batch, so results depend on their number",
            config.model.image.name,
            ", ".join(sorted(kinds)),
        )


def odd_sizes(blocks: Sequence[nn.Module]) -> list[int]:
    """Widths of the blocks' linear layers that matrix products on tensor cores cannot fill, smallest first."""
    layers = [layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)]
    widths = {width for layer in layers for width in (layer.in_features, layer.out_features)}
    return sorted(width for width in widths if width % _TENSOR_CORE_SIZE)


def build_stepper(
    config: JobConfig,
    runtime: Runtime,
    objective: Objective,
    *,
    length: RunLength,
    phase: Phase,
    micro_batch_size: int | None,
) -> Stepper:
    """The step of one phase, over a model that is on the device and bare so far.

    The order matters: what trains, the kernels of attention, activation checkpointing, the size of a micro-batch, the
    ranks, and then compiling, because FSDP2 changes the dtype of what is compiled.

    Args:
        objective: its model has the weights of the start; a checkpoint is loaded into what this returns.
        phase: what holds for these steps.
        micro_batch_size: what `auto` found when this phase began; None means to be found.

    Raises:
        InputError: a schedule that contradicts itself, an optimizer that cannot serve, not one pair fits, or fp8 that
            cannot be compiled; on all ranks alike.
    """
    model, block_lists = objective.model, objective.block_lists()
    blocks = [block for tower_blocks in block_lists for block in tower_blocks]
    learning_rate = build_schedule(config.optim, length)
    optimizer = build_optimizer(config.optim, model, group=runtime.group)
    lock(model, phase.locked)
    copied = None
    if objective.flops.runs_towers:  # what fusions and heads compute is in float32
        _choose_attention(config, runtime, model, phase)
        copied = copied_dtype(config, runtime)
    _transform(block_lists, config)
    half_weights = HalfWeights(model, dtype=copied)
    run = half_weights.around(_dry_run(config, runtime, objective, phase))
    if micro_batch_size is None:
        micro_batch_size = _micro_batch_size(config, runtime, objective, phase, run)
    wrapped, wrapped_optimizer = parallelize(runtime, model, optimizer, blocks=blocks)
    if _is_compiled(config, runtime, objective):
        _compile(config, runtime, objective, micro_batch_size=micro_batch_size, run=run)
    augment = _device_augment(config.data)
    return Stepper(
        runtime=runtime,
        objective=objective,
        model=wrapped,
        optimizer=wrapped_optimizer,
        learning_rate=learning_rate,
        micro_batch_size=micro_batch_size,
        clip_grad_norm=config.optim.clip_grad_norm,
        seed=config.seed,
        augment=augment,
        half_weights=half_weights,
        ema=None if config.ema is None else Ema(model, decay=config.ema.decay),
        selector=build_selector(
            config, runtime, objective, phase=phase, micro_batch_size=micro_batch_size, augment=augment
        ),
    )


def _transform(block_lists: Sequence[Sequence[nn.Module]], config: JobConfig) -> None:
    """Makes the blocks compute in float8, and forget activations, as the config says."""
    for tower_blocks in block_lists:
        if config.precision == "fp8":
            float8_blocks(tower_blocks)
        checkpoint_blocks(tower_blocks, fraction=config.activation_checkpointing)


def _choose_attention(config: JobConfig, runtime: Runtime, model: CLIP, phase: Phase) -> None:
    choose_attention(
        model,
        phase=phase,
        precision=config.precision,
        device=runtime.device,
        on_trial=config.attention == "auto" and not config.deterministic,
        group=runtime.host_group,
    )


def copied_dtype(config: JobConfig, runtime: Runtime) -> torch.dtype | None:
    """The dtype of `HalfWeights`: FSDP2 gathers weights in half precision already, and float8 has other layers."""
    if runtime.device.type != "cuda" or isinstance(config.parallel, Fsdp2Config):
        return None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)


def _device_augment(data: StreamConfig) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Colours are changed on the device: they cost a loader process more than decoding does."""
    augment = sources(data)[0].augment
    if augment is None or not any(device_part(augment)):
        return None
    from clipx.data.device_augment import DeviceAugment

    return DeviceAugment(augment)


def _dry_run(config: JobConfig, runtime: Runtime, objective: Objective, phase: Phase) -> DryRun:
    """A pass of the bare model as it will train: outputs and terms."""

    def forward(batch: Batch) -> Iterable[Tensor]:
        return objective.dry_run_roots(batch, runtime.accelerator.autocast)

    return dry_run(
        forward,
        image_size=objective.wanted.image_size(phase.image_size),
        context_length=phase.context_length,
        captions_per_image=config.data.captions_per_image,
        columns=partial(blank_columns, objective.column_readers),
        device=runtime.device,
    )


def _is_compiled(config: JobConfig, runtime: Runtime, objective: Objective) -> bool:
    device_type = runtime.device.type
    compiled = compiles(
        config, device_type=device_type, image_flops=objective.flops.image, world_size=runtime.world_size
    )
    compiled = compiled and objective.flops.runs_towers
    if runtime.is_main and compiled:
        log.info("compiling the blocks of the towers, which takes a minute or more")
    elif runtime.is_main and device_type == "cuda":
        log.info("compile=%s: the blocks of the towers are not compiled", str(config.compile).lower())
    return compiled


def _compile(config: JobConfig, runtime: Runtime, objective: Objective, *, micro_batch_size: int, run: DryRun) -> None:
    """Compiles the blocks if all ranks can; their inputs then come in few shapes."""
    objective.use_few_shapes(True)
    problem = compile_blocks(
        [block for blocks in objective.block_lists() for block in blocks],
        dry_run=partial(run, micro_batch_size),
        group=runtime.host_group,
        dynamic_blocks=objective.varying_blocks(),
        without_gradients=selection_of(config) is not None
        or (bool(objective.coupled) and micro_batch_size * runtime.world_size < config.global_batch_size),
    )
    objective.model.zero_grad(set_to_none=True)
    if problem is None:
        return
    objective.use_few_shapes(False)
    if config.precision == "fp8":
        raise InputError(
            f"precision=fp8 is slower than bf16 unless blocks are compiled, and that failed ({problem}); mend it, or "
            "set precision=bf16"
        )
    if runtime.is_main:
        log.warning("compiling is not possible here (%s); the run goes on without, which is slower", problem)


def _micro_batch_size(config: JobConfig, runtime: Runtime, objective: Objective, phase: Phase, run: DryRun) -> int:
    """The configured size, or the largest that fits."""
    captions, model = config.data.captions_per_image, objective.model
    geometry = resolve_geometry(
        config.global_batch_size, config.micro_batch_size, runtime.world_size, captions_per_image=captions
    )
    if config.micro_batch_size != "auto":
        return geometry.micro_batch_size
    average = 0 if config.ema is None else sum(weight.nbytes for weight in model.parameters())
    state = state_bytes(
        model,
        config=config.parallel,
        blocks=[block for blocks in objective.block_lists() for block in blocks],
        world_size=runtime.world_size,
        extra_bytes=optimizer_bytes(config.optim, model) + average,
    )
    losses = objective.loss_cost(loss_shape(config, geometry))
    return largest_micro_batch(
        model,
        sizes=micro_batch_sizes(geometry.rank_batch_size, captions),
        run=run,
        reserved_bytes=state
        + losses.gathered_bytes
        + losses.working_bytes
        + selection_bytes(config, phase, world_size=runtime.world_size),
        runtime=runtime,
    )
