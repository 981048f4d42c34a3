"""Model FLOPs of the towers: the floating-point operations that model FLOP utilisation (MFU) counts.

They are those of the plain model's forward pass, as its paper defines it: 2 per multiply-add of every matrix product.
Linear layers and patch embedding are proportional to the tokens, attention to the square of a sequence's tokens (the
full square, also under a causal mask). Only real tokens and kept patches count; padding, recomputation and other work
of an implementation do not. Work that our towers save (the other tokens of the last block, positions after a text's
end) is not subtracted. Norms, activations and softmax are not counted, as is usual, nor is the contrastive loss.

Training a tower takes 3 times the FLOPs of its forward pass: the backward pass has two products for each one. A locked
tower takes them once.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from clipx.models.dry_run import run_on_meta
from clipx.models.patch_drop import num_kept
from clipx.models.text_tower import TextTower
from clipx.models.vision_tower import VisionTower
from clipx.models.vit import Block, num_patches


def flop_counter() -> FlopCounterMode:
    """torch's counter of FLOPs, which in 2.11 overlooks the attention of a CPU."""
    operations = torch.ops.aten
    for suffix in ("", "_backward"):
        known = flop_registry[getattr(operations, f"_scaled_dot_product_flash_attention{suffix}")]
        flop_registry.setdefault(getattr(operations, f"_scaled_dot_product_flash_attention_for_cpu{suffix}"), known)
    return FlopCounterMode(display=False)


@dataclass(frozen=True)
class TextFlops:
    """Model FLOPs of a text encoder with dense attention: a polynomial in the lengths of its texts."""

    per_text: float
    per_token: float
    per_squared_length: float

    def forward(self, *, num_texts: int, num_tokens: int, sum_squared_lengths: int) -> float:
        """FLOPs of the forward pass of several texts, from the sums of their lengths and of their squared lengths."""
        return self.per_text * num_texts + self.per_token * num_tokens + self.per_squared_length * sum_squared_lengths


def image_flops(tower: VisionTower, *, image_size: int, patch_drop: float = 0.0) -> float:
    """FLOPs of the forward pass of one image.

    A formula for timm's plain ViTs. For any other model torch's counter runs on the meta device, which takes seconds
    and counts matrix products, convolutions and fused attention. The tower is not yet distributed over ranks.
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
    """FLOPs of the forward pass of a text tower: a formula for a `TextTower`; any other one is run at three lengths."""
    if isinstance(tower, TextTower):
        blocks: list[Any] = list(tower.blocks)
        return TextFlops(
            per_text=_linear_flops(tower.projection),
            per_token=sum(_linear_flops(block) for block in blocks),
            per_squared_length=sum(4 * block.attn.proj.in_features for block in blocks),
        )
    # the polynomial a + bL + cL^2 through L = 1, 2 and 3
    one, two, three = (_count_texts(tower, length) for length in (1, 2, 3))
    squared = (three - 2 * two + one) / 2
    linear = two - one - 3 * squared
    return TextFlops(per_text=one - linear - squared, per_token=linear, per_squared_length=squared)


def _block_flops(block: Any, tokens: int) -> float:
    if isinstance(block, Block):
        return _linear_flops(block) * tokens + 4 * block.attn.proj.in_features * tokens**2
    width = next(layer.in_features for layer in block.modules() if isinstance(layer, nn.Linear))
    return _count_on_meta(block, torch.empty(2, tokens, width, device="meta"))


def _linear_flops(module: nn.Module) -> float:
    """FLOPs of all linear layers of the module for one token."""
    return sum(2 * layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def _count_on_meta(module: nn.Module, *args: Tensor) -> float:
    """FLOPs of one of the two samples in `args`."""
    with flop_counter() as counter:
        run_on_meta(module, *args)
    return counter.get_total_flops() / 2


def _count_texts(tower: nn.Module, length: int) -> float:
    """FLOPs of one text of `length` tokens, by a real run: transformers' encoders read values of their tensors."""
    device = next(tower.parameters()).device
    tokens_T, lengths_B = torch.zeros(length, dtype=torch.int64, device=device), torch.full((1,), length, device=device)
    with flop_counter() as counter:
        tower(tokens_T, lengths_B, max_length=length)
    return counter.get_total_flops()
