"""From the vectors of several modalities to one: one paper, one file. A fusion knows no encoder and no config."""

from typing import Literal, assert_never

from clipx.models.fusion.attention import Attention
from clipx.models.fusion.bilinear import Bilinear
from clipx.models.fusion.concat import Concat
from clipx.models.fusion.fusion import Fusion
from clipx.models.fusion.gated import Gated
from clipx.models.fusion.late import Late
from clipx.models.fusion.weighted_sum import WeightedSum

__all__ = ["Attention", "Bilinear", "Concat", "Fusion", "Gated", "Late", "VectorFusion", "WeightedSum", "build_fusion"]

VectorFusion = Literal["weighted_sum", "concat", "gated", "bilinear", "attention"]
"""The config's fusions but for `late`, which is none of vectors: see `Late`."""


def build_fusion(kind: VectorFusion, *, num_modalities: int, dim: int, dropout: float) -> Fusion:
    """Builds a fusion on the CPU, with weights from torch's current generator.

    Args:
        kind: of the fusion.
        num_modalities: M, at least 1.
        dim: D, channels of each modality's vector and of the fused one.
        dropout: in training, in those that have hidden channels of their own (gated, bilinear, attention).
    """
    match kind:
        case "weighted_sum":
            return WeightedSum(num_modalities)
        case "concat":
            return Concat(num_modalities, dim=dim)
        case "gated":
            return Gated(num_modalities, dim=dim, dropout=dropout)
        case "bilinear":
            return Bilinear(num_modalities, dim=dim, dropout=dropout)
        case "attention":
            return Attention(num_modalities, dim=dim, dropout=dropout)
        case unknown:
            assert_never(unknown)
