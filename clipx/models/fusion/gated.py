"""Gated multimodal units: every modality's share of every channel depends on all modalities.

Shape suffixes: B samples, M modalities, D channels.
"""

import torch
from torch import Tensor, nn

from clipx.models.fusion.fusion import Fusion
from clipx.models.initialise import initialise_linear
from clipx.models.slot_dropout import SlotDropout


class Gated(Fusion):
    """The gated multimodal unit for any number of modalities (arXiv 1702.01992, figure 2a).

        h_m = tanh(W_m x_m + b_m),    g_m = sigmoid(V_m [x_1; ...; x_M] + c_m),    z = sum_m g_m * h_m

    The paper's equations have no biases. We drop channels of z in training.

    Args:
        num_modalities: M.
        dim: D.
        dropout: share of z's channels.
    """

    def __init__(self, num_modalities: int, *, dim: int, dropout: float) -> None:
        super().__init__()
        self.contents = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_modalities))
        self.gates = nn.Linear(num_modalities * dim, num_modalities * dim)  # the modalities' gates, one after another
        self.dropout = SlotDropout(dropout)
        for linear in (*self.contents, self.gates):
            initialise_linear(linear)

    def forward(self, vectors_BMD: Tensor, presence_BM: Tensor, *, keys_B: Tensor | None = None) -> Tensor:
        """See `Fusion`."""
        contents = [linear(x_BD) for linear, x_BD in zip(self.contents, vectors_BMD.unbind(1), strict=True)]
        contents_BMD = torch.stack(contents, dim=1).tanh()
        gates_BMD = self.gates(vectors_BMD.flatten(1)).sigmoid().view(contents_BMD.shape)
        return self.dropout((gates_BMD * contents_BMD).sum(1), keys_B)
