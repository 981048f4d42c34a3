"""Useful work of the towers, in floating-point operations: what model FLOP utilisation (MFU) counts.

Counted is the forward pass of the plain model as its paper has it, 2 per multiply-add of every matrix product: linear
layers and patch embedding by tokens, attention by the square of a sequence's tokens (the whole square, also under a
causal mask). Only real tokens and kept patches count, and padding, recomputation and whatever else an implementation
does do not; nor is work taken off that our towers avoid (the last block's other tokens, positions after a text's end).
Norms, activations and softmax are left out, as is usual, and the contrastive loss: it is no part of the towers.

Training a tower takes 3 times its forward pass: the backward pass makes two products of each. A tower that is locked
takes it once.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clipx.models.meta_device import run_on_meta
from clipx.models.patch_drop import num_kept
from clipx.models.text_tower import TextTower
from clipx.models.vision_tower import VisionTower
from clipx.models.vit import Block, num_patches


@dataclass(frozen=True)
class TextFlops:
    """Work of a text encoder whose attention is dense: a polynomial in the lengths of its texts."""

    per_text: float
    per_token: float
    per_squared_length: float

    def forward(self, *, num_texts: int, num_tokens: int, sum_squared_lengths: int) -> float:
        """FLOPs of the forward pass of texts with so many tokens together, and squares of lengths together."""
        return self.per_text * num_texts + self.per_token * num_tokens + self.per_squared_length * sum_squared_lengths


def image_flops(tower: VisionTower, *, image_size: int, patch_drop: float = 0.0) -> float:
    """FLOPs of the forward pass of one image.

    In closed form for timm's plain ViTs; for any other model what torch's counter finds in a run without arithmetic,
    which takes seconds and knows matrix products, convolutions and fused attention.

    Args:
        tower: not yet spread over ranks.
        image_size: pixels of a side.
        patch_drop: share of patches left out.
    """
    trunk: Any = tower.trunk
    projection = _linear_flops(tower.projection)
    if not tower.is_plain_vit:
        return _count_on_meta(trunk, torch.empty(2, 3, image_size, image_size, device="meta")) + projection
    kept = num_kept(num_patches(trunk, image_size, image_size), patch_drop)
    tokens = trunk.num_prefix_tokens + kept
    embedding = 2 * trunk.patch_embed.proj.weight.numel() * kept
    blocks = sum(_block_flops(block, tokens) for block in trunk.blocks)
    pooling = 0.0
    if trunk.attn_pool is not None:
        pooled = tokens if trunk.pool_include_prefix else kept
        pooling = _count_on_meta(trunk.attn_pool, torch.empty(2, pooled, trunk.embed_dim, device="meta"))
    return embedding + blocks + pooling + projection


def text_flops(tower: nn.Module) -> TextFlops:
    """The work of a text tower.

    Args:
        tower: `TextTower`, or another whose work is counted at three lengths; not yet spread over ranks.
    """
    if isinstance(tower, TextTower):
        blocks: list[Any] = list(tower.blocks)
        return TextFlops(
            per_text=_linear_flops(tower.projection),
            per_token=sum(_linear_flops(block) for block in blocks),
            per_squared_length=sum(4 * block.attn.proj.in_features for block in blocks),
        )
    # a + bL + cL^2 through L = 1, 2 and 3
    one, two, three = (_count_texts(tower, length) for length in (1, 2, 3))
    squared = (three - 2 * two + one) / 2
    linear = two - one - 3 * squared
    return TextFlops(per_text=one - linear - squared, per_token=linear, per_squared_length=squared)


def _block_flops(block: Any, tokens: int) -> float:
    if isinstance(block, Block):
        return _linear_flops(block) * tokens + 4 * block.attn.attn_dim * tokens**2
    width = next(layer.in_features for layer in block.modules() if isinstance(layer, nn.Linear))
    return _count_on_meta(block, torch.empty(2, tokens, width, device="meta"))


def _linear_flops(module: nn.Module) -> float:
    """FLOPs of all linear layers within for one token."""
    return sum(2 * layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def _count_on_meta(module: nn.Module, *args: Tensor) -> float:
    """FLOPs of one of the two samples given."""
    with FlopCounterMode(display=False) as counter:
        run_on_meta(module, *args)
    return counter.get_total_flops() / 2


def _count_texts(tower: nn.Module, length: int) -> float:
    """FLOPs of one text of so many tokens; a real run, since encoders of transformers look into their tensors."""
    device = next(tower.parameters()).device
    tokens_T, lengths_B = torch.zeros(length, dtype=torch.int64, device=device), torch.full((1,), length, device=device)
    with FlopCounterMode(display=False) as counter:
        tower(tokens_T, lengths_B, max_length=length)
    return counter.get_total_flops()
