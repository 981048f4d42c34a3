"""Late fusion: every modality predicts alone, and the predictions of those that are there are averaged.

It is no `Fusion` of vectors: its outputs are predictions.

Shape suffixes: B samples, M modalities, T targets, O outputs of all targets side by side, D channels.
"""

from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.config.fit_inputs import HeadKind
from clipx.models.fusion.fusion import widened


class Late(nn.Module):
    """A mean of the modalities' predictions, with learned weights over what is present.

        y_t = sum_m w_tm f_t(h_m(x_m)),    w_t = softmax of a_t over the modalities that are there

    For a class f is the log-softmax, so that exp(y) is the weighted geometric mean of the modalities' probabilities,
    but for a factor that the softmax of y removes: the logarithmic opinion pool (Genest and Zidek, "Combining
    probability distributions", Statistical Science 1(1), 1986). For a label it is the same with two
    outcomes: y is the mean of log p less that of log(1 - p), which is the mean of the logits. For a number f is the
    identity.

    Args:
        heads: one per modality, each from (B, D), keys_B to the outputs (B, O) of all targets.
        layout: of each target its kind and its columns among the outputs; together all O, in this order.
    """

    def __init__(self, heads: Sequence[nn.Module], layout: Sequence[tuple[HeadKind, slice]]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.layout = tuple(layout)
        self.logits_TM = nn.Parameter(torch.zeros(len(layout), len(heads)))

    def forward(self, vectors_BMD: Tensor, presence_BM: Tensor, *, keys_B: Tensor | None = None) -> Tensor:
        """The averaged predictions (B, O), in at least float32; for the arguments see `Fusion`.

        Of a sample without any modality the stand-ins' predictions are averaged.
        """
        there_BM = presence_BM > 0
        counts_BM = there_BM | ~there_BM.any(1, keepdim=True)
        weights_BTM = self.logits_TM.masked_fill(~counts_BM[:, None], -torch.inf).softmax(-1)
        raw = [head(x_BD, keys_B) for head, x_BD in zip(self.heads, vectors_BMD.unbind(1), strict=True)]
        raw_BMO = widened(torch.stack(raw, dim=1))
        means = [
            (weights_BTM[:, target, :, None] * _averaged(kind, raw_BMO[:, :, columns])).sum(1)
            for target, (kind, columns) in enumerate(self.layout)
        ]
        return torch.cat(means, dim=1)


def _averaged(kind: HeadKind, raw_BMO: Tensor) -> Tensor:
    """What is averaged of one target's outputs."""
    match kind:
        case "class":
            return functional.log_softmax(raw_BMO, dim=-1)
        case "number" | "labels":
            return raw_BMO
        case unknown:
            assert_never(unknown)
