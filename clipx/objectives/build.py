"""Config to objective."""

from typing import assert_never

from clipx.config.fit import FitConfig
from clipx.config.geometry import BatchGeometry
from clipx.config.loss import InfoNCEConfig, LossConfig, SigmoidConfig
from clipx.config.phases import Phase
from clipx.config.schema import JobConfig
from clipx.losses import ContrastiveLoss
from clipx.losses.cost import LossShape
from clipx.losses.info_nce import InfoNCELoss
from clipx.models.clip import build_model
from clipx.objectives.contrastive import ContrastiveObjective
from clipx.objectives.distillation import build_distillation
from clipx.objectives.flops import ModelFlops
from clipx.objectives.objective import Objective


def build_objective(config: JobConfig, phase: Phase, *, vocab_size: int) -> Objective:
    """The objective that the config describes, as `clipx.objectives.objective.BuildObjective`."""
    if isinstance(config, FitConfig):
        from clipx.objectives.supervised import SupervisedObjective

        return SupervisedObjective(config, phase, vocab_size=vocab_size)
    model = build_model(config.model, vocab_size=vocab_size, seed=config.seed)
    return ContrastiveObjective(
        model,
        loss=build_loss(config.loss),
        flops=ModelFlops.of(model, phase),
        seed=config.seed,
        patch_drop=phase.patch_drop,
        distillation=build_distillation(config),
    )


def loss_shape(config: JobConfig, geometry: BatchGeometry) -> LossShape:
    """What a run's losses are computed over."""
    return LossShape(
        rank_batch_size=geometry.rank_batch_size,
        world_size=geometry.world_size,
        embed_dim=config.model.embed_dim,
        element_bytes=4 if config.precision == "fp32" else 2,
        captions_per_image=config.data.captions_per_image,
    )


def build_loss(config: LossConfig) -> ContrastiveLoss:
    """The contrastive loss that the config describes, with the settings of its kind."""
    match config:
        case InfoNCEConfig():
            return InfoNCELoss(
                implementation=config.implementation, exchange=config.exchange, tile_size=config.tile_size
            )
        case SigmoidConfig():
            from clipx.losses.sigmoid import SigmoidLoss

            return SigmoidLoss(
                implementation=config.implementation, exchange=config.exchange, tile_size=config.tile_size
            )
        case _:
            assert_never(config)
