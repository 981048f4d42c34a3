"""From the vectors of several modalities to one: one paper, one file. A fusion knows no encoder and no config."""

from clipx.errors import InputError
from clipx.models.fusion.attention import Attention
from clipx.models.fusion.bilinear import Bilinear
from clipx.models.fusion.concat import Concat
from clipx.models.fusion.fusion import Fusion
from clipx.models.fusion.gated import Gated
from clipx.models.fusion.late import Late
from clipx.models.fusion.weighted_sum import WeightedSum

__all__ = ["Attention", "Bilinear", "Concat", "Fusion", "Gated", "Late", "WeightedSum", "build_fusion"]


def build_fusion(kind: str, *, num_modalities: int, dim: int, dropout: float) -> Fusion:
    """Builds a fusion on the CPU, with weights from torch's current generator.

    Args:
        kind: weighted_sum, concat, gated, bilinear or attention. `late` is no fusion of vectors: see `Late`.
        num_modalities: M, at least 1.
        dim: D, channels of each modality's vector and of the fused one.
        dropout: in training, in those that have hidden channels of their own (gated, bilinear, attention).

    Raises:
        InputError: there is no fusion of this kind.
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
        case _:
            kinds = "weighted_sum, concat, gated, bilinear or attention"
            raise InputError(f"fusion={kind} is no fusion of vectors; choose {kinds}")
