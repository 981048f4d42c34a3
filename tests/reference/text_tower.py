"""CLIP's text Transformer as the textbook has it: every text padded to the context length, every token in every layer.

Takes the weights of a `TextTower` and shares no code with it; used by tests and benchmarks.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from clipx.models.text_tower import TextTower


def padded(model: TextTower, tokens_T: Tensor, lengths_B: Tensor, *, length: int) -> Tensor:
    """(B, D) of B flat texts, each padded with zeros to `length` positions."""
    texts = tokens_T.split(lengths_B.tolist())
    tokens_BL = torch.stack([functional.pad(text, (0, length - len(text))) for text in texts])
    x_BLC = model.token_embedding.weight[tokens_BL] + model.position_embedding.weight[:length]
    for block in model.blocks:
        x_BLC = x_BLC + _attention(block.attn, _norm(block.norm1, x_BLC))
        hidden_BLM = functional.linear(_norm(block.norm2, x_BLC), block.mlp.fc1.weight, block.mlp.fc1.bias)
        x_BLC = x_BLC + functional.linear(block.mlp.activation(hidden_BLM), block.mlp.fc2.weight, block.mlp.fc2.bias)
    x_BLC = _norm(model.norm, x_BLC)
    return x_BLC[torch.arange(len(texts)), lengths_B - 1] @ model.projection.weight.T


def _norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def _attention(attn: torch.nn.Module, x_BLC: Tensor) -> Tensor:
    batch, length, width = x_BLC.shape
    q, k, v = functional.linear(x_BLC, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=-1)
    q, k, v = (part.view(batch, length, attn.heads, -1).transpose(1, 2) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(width // attn.heads)
    later = torch.ones(length, length, dtype=torch.bool, device=x_BLC.device).triu(1)
    mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ v
    return functional.linear(mixed.transpose(1, 2).reshape(batch, length, width), attn.proj.weight, attn.proj.bias)
