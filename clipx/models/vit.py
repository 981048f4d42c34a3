"""A forward pass for timm's plain ViT: the same result from the same parameters for less work.

timm's modules and parameter names do not change; only the forward pass through them is ours. It starts at uint8 pixels:

- A ViT's patches do not overlap, so patch embedding is one matrix product. Patch dropout removes patches before it, and
  before pixels are normalised.
- If the trunk returns the class token, the last block computes only keys and values for the other tokens, which saves
  10/12 of that block's linear work.
- The position embedding is resampled, within the graph, to the size of the input images.

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

from clipx.models.attention.backends import Choice, attend, attend_in_one_tile, kernel_for, only


class Block(vision_transformer.Block):  # type: ignore[misc]  # timm has no types
    """timm's pre-LN block with a forward pass that can return only the results of the first tokens.

    It is never constructed: `use_fast_blocks` assigns this class to blocks that timm has built. So it is the block's
    own forward pass, and runs under FSDP2's hooks, activation checkpointing and torch.compile.
    """

    num_results: int | None = None
    """Number of tokens, from the first, whose results are computed; None means all."""
    choice: Choice | None = None
    """Which kernel computes attention of all tokens (`choose_attention`); None means flash attention."""

    @property
    def takes_packed(self) -> bool:
        """Whether attention is a function of queries, keys and values as they come, packed, and of nothing else."""
        norms = (self.attn.q_norm, self.attn.k_norm)
        return all(isinstance(norm, nn.Identity) for norm in norms) and self.attn.attn_drop.p == 0

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Maps (B, N, C) to (B, `num_results` or N, C)."""
        x = x_BNC[:, : self.num_results] + self.drop_path1(self.ls1(self._attend(self.norm1(x_BNC))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _attend(self, x_BNC: Tensor) -> Tensor:
        """timm's `Attention.forward`, with queries only for the tokens whose results are computed."""
        attention = self.attn
        heads = (attention.num_heads, attention.head_dim)
        if self.num_results is None:
            mixed_BNAE = self._attend_all(attention.qkv(x_BNC).unflatten(-1, (3, *heads)))
        else:
            width = attention.proj.in_features
            sizes = [width, 2 * width]
            weight_q, weight_kv = attention.qkv.weight.split(sizes)
            bias_q, bias_kv = (None, None) if attention.qkv.bias is None else attention.qkv.bias.split(sizes)
            q = functional.linear(x_BNC[:, : self.num_results], weight_q, bias_q).unflatten(-1, heads)
            k, v = functional.linear(x_BNC, weight_kv, bias_kv).unflatten(-1, (2, *heads)).unbind(2)
            # Never by cuDNN: with one query its gradients may be NaN.
            mixed_BNAE = attend(attention.q_norm(q), attention.k_norm(k), v, dropout=self._attention_dropout)
        return attention.proj_drop(attention.proj(attention.norm(mixed_BNAE.flatten(2))))

    def _attend_all(self, qkv_BN3AE: Tensor) -> Tensor:
        """Attention of all tokens to all tokens, by the chosen kernel: (B, N, H, E)."""
        kernel = kernel_for(qkv_BN3AE, self.choice)
        if kernel == "one_tile":
            return attend_in_one_tile(qkv_BN3AE)
        # Unbound at a middle axis: the gradients of the three are then joined by one copy instead of two.
        q, k, v = qkv_BN3AE.unbind(2)
        q, k = self.attn.q_norm(q), self.attn.k_norm(k)
        return attend(q, k, v, kernel=kernel, dropout=self._attention_dropout)

    @property
    def _attention_dropout(self) -> float:
        return self.attn.attn_drop.p if self.training else 0.0


def is_plain_vit(trunk: Any) -> bool:
    """Whether `vit_forward` gives the trunk's results: it is timm's ViT, with a plain patch embedding."""
    if type(trunk) is not VisionTransformer or type(trunk.patch_embed) is not PatchEmbed:
        return False
    return trunk.patch_embed.proj.in_channels == 3 and not trunk.patch_embed.dynamic_img_pad


def use_fast_blocks(trunk: Any) -> None:
    """Assigns the class `Block` to each block of a plain ViT with the same forward pass; others do not change."""
    for block in trunk.blocks:
        if _is_plain_block(block):
            block.__class__ = Block
    last = trunk.blocks[-1]
    if trunk.global_pool == "token" and isinstance(last, Block):
        last.num_results = 1


def num_patches(trunk: Any, height: int, width: int) -> int:
    """P, the number of patches of an image with `height` x `width` pixels."""
    return (height // trunk.patch_embed.patch_size[0]) * (width // trunk.patch_embed.patch_size[1])


def vit_forward(
    trunk: Any, images_BHWC: Tensor, kept_BK: Tensor | None, *, normalize: Callable[[Tensor], Tensor]
) -> Tensor:
    """Pooled features of a plain ViT.

    Args:
        trunk: timm's `VisionTransformer`, for which `is_plain_vit` holds.
        images_BHWC: uint8 (B, H, W, 3), at least one patch large; pixels after the last full patch are ignored, as a
            convolution ignores them.
        kept_BK: int64 (B, K), the indices of each image's kept patches along the grid's rows; None means all patches.
        normalize: maps uint8 (..., 3) to floating point of the same shape.

    Returns:
        (B, C).
    """
    x_BNC = trunk.norm_pre(_embed(trunk, images_BHWC, kept_BK, normalize=normalize))
    for block in trunk.blocks:
        x_BNC = block(x_BNC)
    if trunk.global_pool == "token":
        x_BNC = x_BNC[:, :1]
    with only("flash", x_BNC):  # attention pooling has one query, for which cuDNN's gradients may be NaN
        return trunk.forward_head(trunk.norm(x_BNC))


def fit_positions(trunk: Any, table_1NC: Tensor) -> Tensor:
    """The position embedding of a plain ViT of another square image size, resampled to the grid of this one."""
    num_prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    grid = list(trunk.patch_embed.grid_size)
    return resample_abs_pos_embed(table_1NC, new_size=grid, num_prefix_tokens=num_prefix)


def _is_plain_block(block: Any) -> bool:
    if type(block) is not vision_transformer.Block:
        return False
    attention, mlp = block.attn, block.mlp
    gated = getattr(attention, "gate", None) is not None  # timm has gates from 1.0.28 on
    # Without `fused_attn`, timm was asked for graphs of elementary operations.
    plain_attention = type(attention) is Attention and not gated and attention.fused_attn
    return plain_attention and type(mlp) is Mlp and isinstance(mlp.fc1, nn.Linear)


def _embed(trunk: Any, images_BHWC: Tensor, kept_BK: Tensor | None, *, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """Maps pixels to tokens with positions; prefix tokens come first."""
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
    return trunk.pos_drop(
        torch.cat((*(token.expand(images_BHWC.shape[0], -1, -1) for token in prefix), tokens_BKC), dim=1)
    )


def _cut(images_BHWC: Tensor, patch_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Maps (B, H, W, 3) to (B, P, pixels of a patch x 3); also returns the rows and columns of the grid.

    It copies pixels as bytes, a quarter of the memory traffic of float32.
    """
    height, width = patch_size
    rows, columns = images_BHWC.shape[1] // height, images_BHWC.shape[2] // width
    cropped = images_BHWC[:, : rows * height, : columns * width]
    patches = cropped.unflatten(1, (rows, height)).unflatten(3, (columns, width)).transpose(2, 3)
    return patches.flatten(3).flatten(1, 2), (rows, columns)


def _embed_patches(patch_embed: Any, pixels_BPC: Tensor) -> Tensor:
    """Maps pixels of patches, channels last, to tokens, with the convolution's weight as a matrix."""
    weight = patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    # The cast is for FSDP2, which passes the weights in its own dtype; elsewhere it does nothing.
    return patch_embed.norm(functional.linear(pixels_BPC.to(weight.dtype), weight, patch_embed.proj.bias))


def _positions(trunk: Any, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The position embedding of prefix tokens (1, N, C) and of the grid's patches (P, C)."""
    num_prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    prefix_1NC, patches_1PC = trunk.pos_embed.tensor_split([num_prefix], dim=1)
    table_grid: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
    return prefix_1NC, patches_1PC[0] if grid == table_grid else _resampled(patches_1PC[0], table_grid, grid)


def _resampled(table_PC: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Resamples a table from one grid to another like timm's `resample_abs_pos_embed`: bicubic, antialiased.

    It uses matrix products, one for rows and one for columns: interpolation has no deterministic gradient on CUDA.
    """
    rows, columns = (_resampling(old, new, device=table_PC.device) for old, new in zip(before, after, strict=True))
    with torch.autocast(table_PC.device.type, enabled=False):
        table_RSC = torch.einsum("or,ps,opc->rsc", rows, columns, table_PC.float().unflatten(0, before))
    return table_RSC.flatten(0, 1).to(table_PC.dtype)


def _resampling(before: int, after: int, *, device: torch.device) -> Tensor:
    """The float32 (before, after) matrix that resamples a row of the grid."""
    impulses = torch.eye(before, device=device)[None, None]
    return functional.interpolate(impulses, size=(before, after), mode="bicubic", antialias=True)[0, 0]
