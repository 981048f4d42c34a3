"""A weighted mean of the modalities' vectors.

Shape suffixes: B samples, M modalities, D channels.
"""

import torch
from torch import Tensor, nn

from clipx.models.fusion.fusion import Fusion


class WeightedSum(Fusion):
    """One learned weight per modality, as ELMo weighs its layers (arXiv 1802.05365, equation 1).

        z = sum_m w_m x_m,    w = softmax(a)

    We have no common factor before the sum: the head learns it. What follows from z linearly is a sum of what follows
    from each modality alone, so that a linear head cannot tell how two modalities combine.

    Args:
        num_modalities: M.
    """

    def __init__(self, num_modalities: int) -> None:
        super().__init__()
        self.logits_M = nn.Parameter(torch.zeros(num_modalities))

    def forward(self, vectors_BMD: Tensor, presence_BM: Tensor, *, keys_B: Tensor | None = None) -> Tensor:
        """See `Fusion`. The sum is computed in at least float32."""
        weights_M = self.logits_M.softmax(0)
        return (weights_M[:, None] * vectors_BMD).sum(1)
