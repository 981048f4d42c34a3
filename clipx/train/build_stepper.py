"""Config to step: what happens to the towers before they train, the optimizer, the loss, the size of a micro-batch."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import assert_never

import torch
from torch import nn

from clipx.config.data import DataConfig, device_part, sources
from clipx.config.geometry import micro_batch_sizes, resolve_geometry
from clipx.config.loss import InfoNCEConfig, LossConfig, SigmoidConfig
from clipx.config.optim import TimmOptimConfig
from clipx.config.parallel import Fsdp2Config
from clipx.config.phases import Phase
from clipx.config.schema import RunConfig
from clipx.data.device_augment import DeviceAugment
from clipx.distributed.block_transforms import checkpoint_blocks, compile_blocks, float8_blocks
from clipx.distributed.parallelize import parallelize
from clipx.distributed.runtime import Runtime
from clipx.losses import ContrastiveLoss
from clipx.losses.backend import check_implementation
from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss
from clipx.models.clip import CLIP
from clipx.models.flops import TextFlops, image_flops, text_flops
from clipx.models.text_tower import TextTower
from clipx.models.vision_tower import check_image_size, check_patch_drop
from clipx.optim.ema import Ema
from clipx.optim.from_timm import check_sharded
from clipx.optim.locking import set_locked
from clipx.optim.optimizers import build_optimizer
from clipx.optim.schedules import build_schedule
from clipx.optim.state_bytes import optimizer_bytes
from clipx.train.micro_batch import largest_micro_batch, loss_bytes, rehearsal, state_bytes
from clipx.train.step import Stepper
from clipx.types import Batch, Embeddings

log = logging.getLogger(__name__)

_TENSOR_CORE_SIZE = 64  # bf16 elements of a row that a product's tile takes at once (128 bytes)


def check_step(config: RunConfig, runtime: Runtime, towers: CLIP) -> None:
    """Looks before any work at what a step of a later phase would find.

    Raises:
        InputError: a loss that this device cannot run, an optimizer that takes no shards, or a stage whose inputs the
            image tower does not take.
    """
    check_implementation(config.loss.implementation, runtime.device)
    _warn_of_batch_statistics(config, runtime, towers)
    slow = odd_sizes(towers.blocks())
    if slow and runtime.device.type == "cuda" and runtime.is_main:
        log.warning(
            "channels of %s are no multiples of %d, so tensor cores stay idle in part; choose widths that are",
            ", ".join(map(str, slow)),
            _TENSOR_CORE_SIZE,
        )
    if isinstance(config.optim, TimmOptimConfig) and isinstance(config.parallel, Fsdp2Config):
        check_sharded(config.optim)
    for name, stage in config.stages.items():
        if stage.image_size is not None:
            check_image_size(towers.image_tower, stage.image_size, name=f"stages.{name}.image_size")
        if stage.patch_drop is not None:
            check_patch_drop(towers.image_tower, stage.patch_drop, name=f"stages.{name}.patch_drop")


def _warn_of_batch_statistics(config: RunConfig, runtime: Runtime, towers: CLIP) -> None:
    kinds = {
        type(module).__name__ for module in towers.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
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
    config: RunConfig, runtime: Runtime, towers: CLIP, *, phase: Phase, micro_batch_size: int | None
) -> Stepper:
    """The step of one phase, over towers that are on the device and bare so far.

    The order matters: what trains, activation checkpointing, the size of a micro-batch, compiling, and then the ranks.

    Args:
        config: of the run.
        runtime: the ranks.
        towers: with the weights of the start; a checkpoint is loaded into what this returns.
        phase: what holds for these steps.
        micro_batch_size: what `auto` found when this phase began; none: to be found.

    Raises:
        InputError: a schedule that contradicts itself, an optimizer that cannot serve, or not one pair fits; on all
            ranks alike.
    """
    learning_rate = build_schedule(config.optim, num_steps=config.num_steps, in_steps=config.in_steps)
    optimizer = build_optimizer(config.optim, towers)
    set_locked(towers, phase.locked)
    flops = UsefulFlops.of(towers, phase)
    if config.precision == "fp8":
        float8_blocks(towers.blocks())
    for of_tower in towers.block_lists():
        checkpoint_blocks(of_tower, fraction=config.activation_checkpointing)
    rehearse = _rehearsal(towers, runtime, phase, captions_per_image=config.data.captions_per_image)
    if micro_batch_size is None:
        micro_batch_size = _micro_batch_size(config, runtime, towers, rehearse)
    compiled = config.compile and _compile(towers, runtime, partial(rehearse, micro_batch_size))
    if isinstance(towers.text_tower, TextTower):  # float8 pads what is no multiple of 16 tokens
        towers.text_tower.bucketed = compiled or config.precision == "fp8"
    model, wrapped_optimizer = parallelize(runtime, towers, optimizer, blocks=towers.blocks())
    return Stepper(
        runtime=runtime,
        model=model,
        towers=towers,
        optimizer=wrapped_optimizer,
        loss=build_loss(config.loss),
        learning_rate=learning_rate,
        micro_batch_size=micro_batch_size,
        clip_grad_norm=config.optim.clip_grad_norm,
        seed=config.seed,
        patch_drop=phase.patch_drop,
        augment=_device_augment(config.data),
        useful_flops=flops,
        ema=None if config.ema is None else Ema(towers, decay=config.ema.decay),
    )


def _device_augment(data: DataConfig) -> Callable[[Batch], Batch]:
    """Colours are changed on the device: they cost a loader process more than decoding does."""
    augment = sources(data)[0].augment
    if not any(device_part(augment)):
        return lambda batch: batch
    transform = DeviceAugment(augment)
    return lambda batch: replace(
        batch, images_IHWC=transform(batch.images_IHWC, torch.tensor(batch.augment_seeds, dtype=torch.int64))
    )


def build_loss(config: LossConfig) -> ContrastiveLoss:
    """Config to loss."""
    kind: type[InfoNCELoss | SigmoidLoss]
    match config:
        case InfoNCEConfig():
            kind = InfoNCELoss
        case SigmoidConfig():
            kind = SigmoidLoss
        case _:
            assert_never(config)
    return kind(implementation=config.implementation, exchange=config.exchange, tile_size=config.tile_size)


@dataclass(frozen=True)
class UsefulFlops:
    """What the arithmetic of a step on some pairs needs, three times the forward pass; of a locked tower, once."""

    per_image: float
    image_passes: int
    text: TextFlops
    text_passes: int

    @classmethod
    def of(cls, towers: CLIP, phase: Phase) -> "UsefulFlops":
        """Counted for the inputs of a phase."""
        return cls(
            per_image=image_flops(towers.image_tower, image_size=phase.image_size, patch_drop=phase.patch_drop),
            image_passes=1 if "image" in phase.locked else 3,
            text=text_flops(towers.text_tower),
            text_passes=1 if "text" in phase.locked else 3,
        )

    @property
    def of_image(self) -> float:
        """FLOPs of a picture alone."""
        return self.image_passes * self.per_image

    def __call__(self, batch: Batch) -> float:
        """FLOPs of a batch on the host."""
        text = self.text.forward(
            num_texts=len(batch),
            num_tokens=batch.tokens_T.shape[0],
            sum_squared_lengths=int(batch.lengths_B.square().sum()),
        )
        return self.of_image * len(batch.slot_I) + self.text_passes * text


def _rehearsal(towers: CLIP, runtime: Runtime, phase: Phase, *, captions_per_image: int) -> Callable[[int], None]:
    def forward(batch: Batch) -> Embeddings:
        with runtime.accelerator.autocast():
            return towers(batch, seed=0, patch_drop=phase.patch_drop)

    return rehearsal(
        forward=forward,
        image_size=phase.image_size,
        context_length=phase.context_length,
        captions_per_image=captions_per_image,
        device=runtime.device,
    )


def _compile(towers: CLIP, runtime: Runtime, rehearse: Callable[[], None]) -> bool:
    """Whether the blocks could be compiled; texts come in few shapes from then on, and meanwhile."""
    _, text_blocks = towers.block_lists()
    if isinstance(towers.text_tower, TextTower):
        towers.text_tower.bucketed = True
    compiled = compile_blocks(towers.blocks(), dry_run=rehearse, group=runtime.group, dynamic_blocks=text_blocks)
    towers.zero_grad(set_to_none=True)
    return compiled


def _micro_batch_size(config: RunConfig, runtime: Runtime, towers: CLIP, rehearse: Callable[[int], None]) -> int:
    """As configured, or the largest that fits."""
    captions = config.data.captions_per_image
    geometry = resolve_geometry(
        config.global_batch_size, config.micro_batch_size, runtime.world_size, captions_per_image=captions
    )
    if config.micro_batch_size != "auto":
        return geometry.micro_batch_size
    average = 0 if config.ema is None else sum(weight.nbytes for weight in towers.parameters())
    beside = state_bytes(
        towers,
        config=config.parallel,
        blocks=towers.blocks(),
        world_size=runtime.world_size,
        kept=optimizer_bytes(config.optim, towers) + average,
    ) + loss_bytes(
        rank_batch_size=geometry.rank_batch_size,
        world_size=runtime.world_size,
        embed_dim=config.model.embed_dim,
    )
    return largest_micro_batch(
        towers,
        sizes=micro_batch_sizes(geometry.rank_batch_size, captions),
        rehearse=rehearse,
        beside=beside,
        runtime=runtime,
    )
