"""Low-rank multimodal fusion: products of all modalities, without the tensor that holds all of them.

Shape suffixes: B samples, M modalities, R ranks, D channels, N = R D.
"""

from functools import reduce

import torch
from torch import Tensor, nn

from clipx.models.fusion.fusion import Fusion, widened
from clipx.models.slot_dropout import SlotDropout


class Bilinear(Fusion):
    """Low-rank multimodal fusion (arXiv 1806.00064), bilinear for two modalities.

        z = sum_r prod_m W_m^(r) [x_m; 1] + c

    The 1 that is appended to every vector lets z have what depends on some of the modalities alone, and is the bias of
    a linear layer here. We drop channels of z in training.

    In the beginning a factor has the variance R^(-1/M), half of it from x_m and half from the 1, so that z has about
    the variance 1, and parts of each modality alone as well as of the product.

    Args:
        num_modalities: M.
        dim: D.
        dropout: share of z's channels.
        rank: R.
    """

    def __init__(self, num_modalities: int, *, dim: int, dropout: float, rank: int = 8) -> None:
        super().__init__()
        self.rank = rank
        factors = [nn.Linear(dim, rank * dim) for _ in range(num_modalities)]
        self.factors = nn.ModuleList(factors)
        self.bias_D = nn.Parameter(torch.zeros(dim))
        self.dropout = SlotDropout(dropout)
        std = (rank ** (-1 / num_modalities) / 2) ** 0.5
        for linear in factors:
            nn.init.normal_(linear.weight, std=std * dim**-0.5)
            nn.init.normal_(linear.bias, std=std)

    def forward(self, vectors_BMD: Tensor, presence_BM: Tensor, *, keys_B: Tensor | None = None) -> Tensor:
        """See `Fusion`. Products and sums are computed in at least float32."""
        pairs = zip(self.factors, vectors_BMD.unbind(1), strict=True)
        product_BN = reduce(torch.mul, (widened(linear(x_BD)) for linear, x_BD in pairs))
        return self.dropout(product_BN.unflatten(1, (self.rank, -1)).sum(1) + self.bias_D, keys_B)
