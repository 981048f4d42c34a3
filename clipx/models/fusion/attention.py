"""Attention over modalities: a class token reads one token per modality.

Shape suffixes: B samples, M modalities, T = M + 1 tokens, H heads, K channels of a head, D channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.models.fusion.fusion import Fusion, widened
from clipx.models.initialise import initialise_linear
from clipx.models.slot_dropout import SlotDropout

_MOST_HEADS = 8  # as in arXiv 1706.03762, section 3.2.2


class Attention(Fusion):
    """One pre-LN block of a Transformer (arXiv 2002.04745, figure 1b) over [class; U_1 x_1 + p_1; ...; U_M x_M + p_M].

        y = class + W_o softmax(q k^T / sqrt(K)) v,    z = LN(y + MLP(LN(y)))

    Every modality has a matrix U_m, since all tokens share keys and values: without it one modality's noise would lie
    in the directions that the other's signal is read from. p_m is a learned vector for "modality m is there", and
    another for "a stand-in is here". Only the class token's row is computed, since no other is read afterwards. We drop
    hidden channels of the MLP in training.

    Args:
        num_modalities: M.
        dim: D.
        dropout: share of the MLP's hidden channels.
        mlp_ratio: hidden channels of the MLP per channel.
    """

    def __init__(self, num_modalities: int, *, dim: int, dropout: float, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.heads = next(heads for heads in range(_MOST_HEADS, 0, -1) if dim % heads == 0)
        inputs = [nn.Linear(dim, dim, bias=False) for _ in range(num_modalities)]
        self.inputs = nn.ModuleList(inputs)
        self.class_D = nn.Parameter(torch.empty(dim))
        self.absent_MD = nn.Parameter(torch.empty(num_modalities, dim))
        self.present_MD = nn.Parameter(torch.empty(num_modalities, dim))
        self.norm1 = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.keys_values = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, mlp_ratio * dim)
        self.dropout = SlotDropout(dropout)
        self.fc2 = nn.Linear(mlp_ratio * dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        for token in (self.class_D, self.absent_MD, self.present_MD):
            nn.init.normal_(token, std=0.02)
        for linear in (*inputs, self.query, self.keys_values, self.proj, self.fc1, self.fc2):
            initialise_linear(linear)

    def forward(self, vectors_BMD: Tensor, presence_BM: Tensor, *, keys_B: Tensor | None = None) -> Tensor:
        """See `Fusion`. The softmax and the residual stream are computed in at least float32."""
        tokens = [linear(x_BD) for linear, x_BD in zip(self.inputs, vectors_BMD.unbind(1), strict=True)]
        tokens_BMD = torch.stack(tokens, dim=1)
        place_BMD = torch.where(presence_BM[:, :, None] > 0, self.present_MD, self.absent_MD)
        class_BD = self.class_D.expand(vectors_BMD.shape[0], -1)  # not len(): an export would fix it
        tokens_BTD = self.norm1(torch.cat([class_BD[:, None], tokens_BMD + place_BMD], dim=1))
        y_BD = class_BD + self._attend(tokens_BTD)
        hidden_BN = functional.gelu(self.fc1(self.norm2(y_BD)))
        return self.norm3(y_BD + self.fc2(self.dropout(hidden_BN, keys_B)))

    def _attend(self, tokens_BTD: Tensor) -> Tensor:
        """Maps tokens (B, T, D) to what the first of them reads from all, (B, D)."""
        query_BHK = self.query(tokens_BTD[:, 0]).unflatten(-1, (self.heads, -1))
        key_BTHK, value_BTHK = self.keys_values(tokens_BTD).unflatten(-1, (2, self.heads, -1)).unbind(2)
        scores_BTH = (query_BHK[:, None] * key_BTHK).sum(-1) * query_BHK.shape[-1] ** -0.5
        shares_BTH = widened(scores_BTH).softmax(1)
        return self.proj((shares_BTH[..., None] * value_BTHK).sum(1).flatten(1))
