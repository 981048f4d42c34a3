"""Attention of one sequence, from its definition, in the dtype of its inputs."""

import math

import torch
from torch import Tensor


def attention(qkv_N3HE: Tensor, *, causal: bool, scale: float) -> Tensor:
    """(N, 3, H, E) to (N, H, E): softmax(scale q k^T) v."""
    q, k, v = qkv_N3HE.unbind(1)
    logits = torch.einsum("qhe,khe->hqk", q, k) * scale
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[1:], dtype=torch.bool).triu(1), -math.inf)
    return torch.einsum("hqk,khe->qhe", logits.softmax(-1), v)


def packed_attention(qkv_T3HE: Tensor, lengths: list[int], *, causal: bool, scale: float) -> Tensor:
    """Of sequences that stand one behind the other: (T, 3, H, E) to (T, H, E)."""
    return torch.cat([attention(part, causal=causal, scale=scale) for part in qkv_T3HE.split(lengths)])
