"""The part of the schema that describes the loss: one dataclass per loss, and their union, tagged by `type`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from clipx.config.field_types import STRICT, Count, Positive, Text
from clipx.config.validate import validated


@validated
@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """One of the teachers in `data.teachers`."""

    __pydantic_config__ = STRICT

    weight: Positive = 1.0
    """Of its divergence, relative to the other teachers'."""
    logit_scale: Positive | None = None
    """Multiplier of its similarities; null: the one that it was trained to."""


@validated
@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Divergence of the student's rows of similarities from the teachers', both ways (MobileCLIP, arXiv 2311.17049)."""

    __pydantic_config__ = STRICT

    weight: Positive = 1.0
    """Beside the contrastive loss, whose weight is 1."""
    teachers: dict[Text, TeacherConfig] = field(default_factory=dict)
    """By their names in `data.teachers`; empty: all of them, equally."""


@validated
@dataclass(frozen=True, kw_only=True)
class LossTermsConfig:
    """What is added to the contrastive loss."""

    __pydantic_config__ = STRICT

    distill: DistillConfig | None = None
    """What teachers know of the batch; needs `data.teachers`."""


@validated
@dataclass(frozen=True, kw_only=True)
class InfoNCEConfig:
    """Symmetric cross-entropy over the global batch (CLIP, arXiv 2103.00020, figure 3)."""

    __pydantic_config__ = STRICT

    type: Literal["info_nce"] = "info_nce"
    implementation: Literal["auto", "tiled", "triton"] = "auto"
    """tiled: torch, on any device; triton: fused kernels, on CUDA; auto: triton for bf16 and fp16 where it is there."""
    exchange: Literal["gather", "ring"] = "gather"
    """How texts reach all ranks: at once, or rank by rank in a ring, for G x embed_dim that does not fit."""
    tile_size: Count = 2048
    """Its square is the most similarities that torch holds at once; on CUDA 4 times as many."""
    terms: LossTermsConfig = field(default_factory=LossTermsConfig)
    """Further losses beside it."""


@validated
@dataclass(frozen=True, kw_only=True)
class SigmoidConfig:
    """Pairwise sigmoid loss (SigLIP, arXiv 2303.15343); wants model.init_logit_bias: -10 and init_logit_scale: 10."""

    __pydantic_config__ = STRICT

    type: Literal["sigmoid"] = "sigmoid"
    implementation: Literal["auto", "tiled", "triton"] = "auto"
    """tiled: torch, on any device; triton: fused kernels, on CUDA; auto: triton for bf16 and fp16 where it is there."""
    exchange: Literal["gather", "ring"] = "gather"
    """How texts reach all ranks: at once, or rank by rank in a ring, for G x embed_dim that does not fit."""
    tile_size: Count = 2048
    """Its square is the most similarities that torch holds at once; on CUDA 4 times as many."""
    terms: LossTermsConfig = field(default_factory=LossTermsConfig)
    """Further losses beside it."""


LossConfig = Annotated[InfoNCEConfig | SigmoidConfig, Field(discriminator="type")]
