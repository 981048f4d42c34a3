"""The forward pass of timm's plain ViT: the same result from the same parameters for less work.

timm's modules and parameter names stay as they are; only the way through them is ours. It begins at uint8 pixels:

- A ViT's patches do not overlap, so patch embedding is one matrix product. Patches that patch dropout leaves out are
  left out before it, and before pixels are normalised, not after.
- Where the class token is what the trunk returns, the last block computes nothing for other tokens but their keys and
  values: 10/12 of that block's linear work is saved.
- The position embedding is resampled, within the graph, to the size of the images that come in.

Shape suffixes: B images, H and W pixels, C channels (3 of pixels, else of the trunk), P patches, K patches kept,
N tokens (prefix and patches), A heads, E channels of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Attention, Mlp, PatchEmbed, resample_abs_pos_embed
from timm.models import vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional


class Block(vision_transformer.Block):  # type: ignore[misc]  # timm has no types
    """timm's pre-LN block with a forward pass that can leave out all but the first tokens' results.

    Never built: `use_fast_blocks` gives this class to blocks that timm built. Being the block's own forward pass it
    runs under FSDP2's hooks, activation checkpointing and `block.compile()`.
    """

    num_results: int | None = None
    """Tokens, from the first, whose results are computed; none: all."""

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Maps (B, N, C) to (B, `num_results` or N, C)."""
        x = x_BNC[:, : self.num_results] + self.drop_path1(self.ls1(self._attend(self.norm1(x_BNC))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _attend(self, x_BNC: Tensor) -> Tensor:
        """timm's `Attention.forward`, with queries of those tokens only whose results are asked for."""
        attention = self.attn
        heads = (attention.num_heads, attention.head_dim)
        if self.num_results is None:
            # Unbound at a middle axis, so that the gradients of the three meet in one copy and not in two.
            q, k, v = attention.qkv(x_BNC).unflatten(-1, (3, *heads)).unbind(2)
        else:
            sizes = [attention.attn_dim, 2 * attention.attn_dim]
            weight_q, weight_kv = attention.qkv.weight.split(sizes)
            bias_q, bias_kv = (None, None) if attention.qkv.bias is None else attention.qkv.bias.split(sizes)
            q = functional.linear(x_BNC[:, : self.num_results], weight_q, bias_q).unflatten(-1, heads)
            k, v = functional.linear(x_BNC, weight_kv, bias_kv).unflatten(-1, (2, *heads)).unbind(2)
        mixed_BANE = functional.scaled_dot_product_attention(
            attention.q_norm(q).transpose(1, 2),
            attention.k_norm(k).transpose(1, 2),
            v.transpose(1, 2),
            dropout_p=attention.attn_drop.p if self.training else 0.0,
        )
        mixed = attention.norm(mixed_BANE.transpose(1, 2).flatten(2))
        return attention.proj_drop(attention.proj(mixed))


def is_plain_vit(trunk: Any) -> bool:
    """Whether `vit_forward` computes what the trunk does: it is timm's ViT, and its patch embedding is plain."""
    if type(trunk) is not VisionTransformer or type(trunk.patch_embed) is not PatchEmbed:
        return False
    return trunk.in_chans == 3 and not trunk.patch_embed.dynamic_img_pad


def use_fast_blocks(trunk: Any) -> None:
    """Gives `Block` to those of a plain ViT's blocks whose forward pass it equals; others stay timm's."""
    for block in trunk.blocks:
        if _is_plain_block(block):
            block.__class__ = Block
    last = trunk.blocks[-1]
    if trunk.global_pool == "token" and isinstance(last, Block):
        last.num_results = 1


def num_patches(trunk: Any, height: int, width: int) -> int:
    """P: the patches of an image of so many pixels."""
    return (height // trunk.patch_embed.patch_size[0]) * (width // trunk.patch_embed.patch_size[1])


def vit_forward(
    trunk: Any, images_BHWC: Tensor, kept_BK: Tensor | None, *, normalize: Callable[[Tensor], Tensor]
) -> Tensor:
    """Pooled features of a plain ViT.

    Args:
        trunk: timm's `VisionTransformer`, for which `is_plain_vit` holds.
        images_BHWC: uint8 (B, H, W, 3), of any size that holds a patch; pixels beyond the last whole patch are left
            out, as a convolution leaves them.
        kept_BK: int64 (B, K), the patches to keep of each image, rows of the grid one after the other; none: all.
        normalize: uint8 (..., 3) to floating point of the same shape.

    Returns:
        (B, C).
    """
    x_BNC = trunk.norm_pre(_embed(trunk, images_BHWC, kept_BK, normalize=normalize))
    for block in trunk.blocks:
        x_BNC = block(x_BNC)
    if trunk.global_pool == "token":
        x_BNC = x_BNC[:, :1]
    return trunk.forward_head(trunk.norm(x_BNC))


def fit_positions(trunk: Any, table_1NC: Tensor) -> Tensor:
    """The position embedding of a plain ViT at another square image size, resampled to the grid of this one."""
    num_prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    grid = list(trunk.patch_embed.grid_size)
    return resample_abs_pos_embed(table_1NC, new_size=grid, num_prefix_tokens=num_prefix)


def _is_plain_block(block: Any) -> bool:
    if type(block) is not vision_transformer.Block:
        return False
    attention, mlp = block.attn, block.mlp
    # Without `fused_attn` timm was told to make graphs of elementary operations.
    plain_attention = type(attention) is Attention and attention.gate is None and attention.fused_attn
    return plain_attention and type(mlp) is Mlp and isinstance(mlp.fc1, nn.Linear)


def _embed(trunk: Any, images_BHWC: Tensor, kept_BK: Tensor | None, *, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """Pixels to tokens with positions, prefix tokens first."""
    patches_BPC, grid = _cut(images_BHWC, trunk.patch_embed.patch_size)
    if kept_BK is not None:
        patches_BPC = patches_BPC.gather(1, kept_BK[..., None].expand(-1, -1, patches_BPC.shape[2]))
    tokens_BKC = _embed_patches(trunk.patch_embed, normalize(patches_BPC.unflatten(-1, (-1, 3))).flatten(2))
    prefix = [token for token in (trunk.cls_token, trunk.reg_token) if token is not None]
    if trunk.pos_embed is not None:
        prefix_1NC, positions_PC = _positions(trunk, grid)
        # One row of the table per token: unlike a gather its gradient is deterministic on CUDA.
        tokens_BKC = tokens_BKC + (positions_PC if kept_BK is None else functional.embedding(kept_BK, positions_PC))
        if prefix and not trunk.no_embed_class:
            prefix = [torch.cat(prefix, dim=1) + prefix_1NC]
    return trunk.pos_drop(torch.cat((*(token.expand(len(images_BHWC), -1, -1) for token in prefix), tokens_BKC), dim=1))


def _cut(images_BHWC: Tensor, patch_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """(B, H, W, 3) to (B, P, pixels of a patch and their channels), and the rows and columns of the grid.

    Pixels are moved as bytes: a quarter of what float32 would take.
    """
    height, width = patch_size
    rows, columns = images_BHWC.shape[1] // height, images_BHWC.shape[2] // width
    whole = images_BHWC[:, : rows * height, : columns * width]
    patches = whole.unflatten(1, (rows, height)).unflatten(3, (columns, width)).transpose(2, 3)
    return patches.flatten(3).flatten(1, 2), (rows, columns)


def _embed_patches(patch_embed: Any, pixels_BPC: Tensor) -> Tensor:
    """Pixels of patches, channels innermost, to tokens: the convolution's weight as a matrix."""
    weight = patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    # The cast is for FSDP2, which hands the weights over in its own dtype; elsewhere it does nothing.
    return patch_embed.norm(functional.linear(pixels_BPC.to(weight.dtype), weight, patch_embed.proj.bias))


def _positions(trunk: Any, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The position embedding of prefix tokens (1, N, C) and of the grid's patches (P, C)."""
    num_prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    prefix_1NC, patches_1PC = trunk.pos_embed.tensor_split([num_prefix], dim=1)
    own: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
    return prefix_1NC, patches_1PC[0] if grid == own else _resampled(patches_1PC[0], own, grid)


def _resampled(table_PC: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """A table over one grid resampled to another, as timm's `resample_abs_pos_embed` does it: bicubic, antialiased.

    By matrix products, rows and columns apart, for interpolation has no deterministic gradient on CUDA.
    """
    rows, columns = (_resampling(old, new, device=table_PC.device) for old, new in zip(before, after, strict=True))
    with torch.autocast(table_PC.device.type, enabled=False):
        table_RSC = torch.einsum("or,ps,opc->rsc", rows, columns, table_PC.float().unflatten(0, before))
    return table_RSC.flatten(0, 1).to(table_PC.dtype)


def _resampling(before: int, after: int, *, device: torch.device) -> Tensor:
    """The float32 (before, after) matrix that resamples a row of the grid."""
    impulses = torch.eye(before, device=device)[None, None]
    return functional.interpolate(impulses, size=(before, after), mode="bicubic", antialias=True)[0, 0]
