"""The part of the schema about the update of the weights: optimizers, learning rates, locked towers, the average."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from clipx.config.field_types import (
    NO_BOOL,
    STRICT,
    FractionBelowOne,
    Interval,
    NonNegative,
    Positive,
    PositiveFraction,
    Text,
)
from clipx.config.validate import validated
from clipx.errors import InputError

NEWTON_SCHULZ_ITERATIONS = (2, 6)
"""The fewest and the most that `clipx.optim.newton_schulz` has polynomials for."""


@validated
@dataclass(frozen=True, kw_only=True)
class TowerOptimConfig:
    """How one tower learns."""

    __pydantic_config__ = STRICT

    lr_scale: NonNegative = 1.0
    """Learning rate of the tower, its projection included, in units of optim.lr."""
    layer_decay: PositiveFraction = 1.0
    """Factor on the learning rate per block, from the last to the first and once more for the embeddings, as BEiT
    (arXiv 2106.08254) fine-tunes; below 1 for towers that start from trained weights."""
    locked_steps: Literal["all"] | Interval = 0
    """Steps for which the tower's weights stay as they are, all but its projection (LiT, arXiv 2111.07991)."""


@validated
@dataclass(frozen=True, kw_only=True)
class Optim:
    """Settings of every optimizer: the learning rate over time, and its scale for each part of the model."""

    __pydantic_config__ = STRICT

    lr: NonNegative = 5.0e-4
    """Peak learning rate."""
    weight_decay: NonNegative = 0.2
    """For matrices and embeddings; never for gains, biases and the temperature."""
    warmup_steps: Interval = 2000
    """Steps of linear warm-up from 0."""
    warmup_samples: Interval | None = None
    """Warm-up in pairs seen, instead of warmup_steps."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine down to min_lr, or the peak rate up to the cooldown."""
    cooldown_steps: Interval = 0
    """schedule: constant; last steps of the run, in which the rate falls linearly to min_lr."""
    cooldown_samples: Interval | None = None
    """The cooldown in pairs seen, instead of cooldown_steps."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of the cosine or the cooldown."""
    clip_grad_norm: Positive | None = 1.0
    """Largest global norm of the gradient; null: not clipped, still measured."""
    image: TowerOptimConfig = field(default_factory=TowerOptimConfig)
    """The image tower."""
    text: TowerOptimConfig = field(default_factory=TowerOptimConfig)
    """The text tower."""


@validated
@dataclass(frozen=True, kw_only=True)
class AdamWConfig(Optim):
    """AdamW (arXiv 1711.05101), fused."""

    __pydantic_config__ = STRICT

    type: Literal["adamw"] = "adamw"
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.98)
    """Decay of the first and second moment."""
    eps: Positive = 1.0e-6
    """Added to the root of the second moment."""


@validated
@dataclass(frozen=True, kw_only=True)
class StableAdamWConfig(Optim):
    """AdamW whose rate falls, tensor by tensor, where the update would be too large (arXiv 2304.13013, algorithm 2)."""

    __pydantic_config__ = STRICT

    type: Literal["stable_adamw"] = "stable_adamw"
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.99)
    """Decay of the first and second moment."""
    eps: Positive = 1.0e-6
    """Added to the root of the second moment."""


@validated
@dataclass(frozen=True, kw_only=True)
class MuonConfig(Optim):
    """Muon (Jordan, "Muon", 2024) for the matrices of the towers' blocks, and AdamW for all else.

    Every matrix is orthogonalised on one rank, and the others get the result. A fused projection to queries, keys and
    values is three matrices.
    """

    __pydantic_config__ = STRICT

    type: Literal["muon"] = "muon"
    momentum: FractionBelowOne = 0.95
    """Decay of the momentum, Nesterov's."""
    iterations: Annotated[int, Field(ge=NEWTON_SCHULZ_ITERATIONS[0], le=NEWTON_SCHULZ_ITERATIONS[1]), NO_BOOL] = 4
    """Newton-Schulz iterations, with the polynomials of Polar Express (arXiv 2505.16932). 4 reach singular values as
    small as 5 of Jordan's do; one less reaches to 4 times larger ones."""
    scale: Literal["adamw", "spectral"] = "adamw"
    """Length of an update. adamw: 0.2 sqrt(max(rows, columns)), the root mean square of AdamW's (arXiv 2502.16982), so
    that its lr and weight_decay carry over; spectral: sqrt(max(1, rows / columns)), Jordan's, for rates near 0.02."""
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.98)
    """AdamW's decay of the first and second moment."""
    eps: Positive = 1.0e-6
    """Added to the root of AdamW's second moment."""
    adamw_lr_scale: NonNegative = 1.0
    """AdamW's learning rate, in units of lr."""

    def __post_init__(self) -> None:
        if self.image.locked_steps == self.text.locked_steps == "all":
            raise InputError(
                "optim.type=muon learns the matrices of the towers' blocks, and both towers are locked "
                "(locked_steps=all); choose adamw, or let one of them learn"
            )


@validated
@dataclass(frozen=True, kw_only=True)
class TimmOptimConfig(Optim):
    """Any optimizer of timm's, by its name there."""

    __pydantic_config__ = STRICT

    type: Literal["timm"] = "timm"
    name: Text
    """E.g. lion, adopt, muon, lamb, adafactorbv; `timm.optim.list_optimizers()` has all."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer, e.g. {betas: [0.95, 0.98]}."""


OptimConfig = Annotated[AdamWConfig | StableAdamWConfig | MuonConfig | TimmOptimConfig, Field(discriminator="type")]


@validated
@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of the weights, saved, evaluated and exported beside them."""

    __pydantic_config__ = STRICT

    decay: FractionBelowOne = 0.9999
    """Share of the average that stays at each step."""
