"""The part of the schema that describes the loss: one dataclass per loss, and their union, tagged by `type`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from clipx.config.field_types import STRICT, Count
from clipx.config.validate import validated


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


LossConfig = Annotated[InfoNCEConfig | SigmoidConfig, Field(discriminator="type")]
