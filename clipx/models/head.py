"""Heads: from a fused vector to the outputs of one or several targets.

Shape suffixes: B samples, D channels, O outputs.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from clipx.models.initialise import initialise_linear
from clipx.models.slot_dropout import SlotDropout

_LAST_GAIN = 0.1


class Head(nn.Module):
    """A multilayer perceptron: each hidden layer is linear, GELU (arXiv 1606.08415) and dropout; the last is linear.

    The last layer's weights begin small, with a tenth of the standard deviation that keeps the variance. So the first
    predictions are near the same probability for every class and the mean of a number, and no sample's loss stands out.

    Args:
        dim: D.
        hidden: sizes of the hidden layers; empty makes one linear layer.
        num_outputs: O.
        dropout: share of the channels of each hidden layer.
    """

    def __init__(self, dim: int, *, hidden: Sequence[int], num_outputs: int, dropout: float) -> None:
        super().__init__()
        layers = [nn.Linear(*sizes) for sizes in pairwise((dim, *hidden))]
        self.hidden = nn.ModuleList(layers)
        self.dropouts = nn.ModuleList(SlotDropout(dropout) for _ in hidden)
        self.last = nn.Linear(hidden[-1] if hidden else dim, num_outputs)
        for linear in layers:
            initialise_linear(linear)
        initialise_linear(self.last, gain=_LAST_GAIN)

    def forward(self, x_BD: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Maps (B, D) to raw outputs (B, O): logits, or a scaled number; for `keys_B` see `SlotDropout`."""
        for linear, dropout in zip(self.hidden, self.dropouts, strict=True):
            x_BD = dropout(functional.gelu(linear(x_BD)), keys_B)
        return self.last(x_BD)
