"""What all fusions have in common: from the vectors of several modalities to one."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Fusion(nn.Module, ABC):
    """Maps a vector per modality, all of one size and on one scale, to one vector."""

    @abstractmethod
    def forward(self, vectors_BMD: Tensor, presence_BM: Tensor, *, keys_B: Tensor | None = None) -> Tensor:
        """The fused vectors (B, D), in at least the vectors' dtype or in that of autocast.

        Args:
            vectors_BMD: floating (B, M, D), about of mean 0 and variance 1; what is absent is replaced by a stand-in.
            presence_BM: 1 where a modality is there, 0 where its vector is a stand-in.
            keys_B: int64 (B,), of `clipx.models.slot_dropout.dropout_keys`; None (evaluation) drops nothing.
        """


def widened(x: Tensor) -> Tensor:
    """The tensor in at least float32 (float64 stays)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
