"""Attention within short sequences, each head of a sequence in one tile on chip: packed in, packed gradients out.

Flash attention works in tiles of 128 queries; a sequence of 16 tokens fills 1.6% of one, and its backward pass makes
several passes over memory. Here a sequence gets the smallest tile that holds it, and each pass reads its operands once
and writes its results once. It is an operation of its own for torch, `clipx::one_tile_attention`: torch.compile takes
it as it is, activation checkpointing and FLOP counters know it. Its results repeat bit for bit.

Shape suffixes: T tokens of all sequences, H heads, E channels of a head.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

MAX_TOKENS = 128
"""Of the longest sequence."""
_MAX_CHANNELS = 128
_TILES = {32: 4, 64: 4, 128: 8}
"""Tokens that a tile holds, and the warps that compute it."""


def has_one_tile(*, num_tokens: int, channels: int) -> bool:
    """Whether the kernels exist for sequences of at most `num_tokens`, with heads of some number of channels."""
    return 1 <= num_tokens <= MAX_TOKENS and channels <= _MAX_CHANNELS and channels % 8 == 0 and _has_triton()


def _has_triton() -> bool:
    return find_spec("triton") is not None


def one_tile_attention(
    qkv_T3HE: Tensor, bounds: Tensor | None, *, longest: int, causal: bool, scale: float | None = None
) -> Tensor:
    """Attention of every token to the tokens of its own sequence, or, if `causal`, only to itself and earlier ones.

    Args:
        qkv_T3HE: queries, keys and values (T, 3, H, E), in bf16 or fp16 on CUDA.
        bounds: int32, 0 and the running sum of the sequences' lengths, each at most `longest`; empty sequences are
            allowed. None means that every sequence has `longest` tokens.
        longest: at most `MAX_TOKENS`.
        causal: whether later tokens are left out.
        scale: the factor on q k; None means E^-0.5.

    Returns:
        (T, H, E), in the dtype of the input.
    """
    scale = qkv_T3HE.shape[-1] ** -0.5 if scale is None else scale
    return _attention(qkv_T3HE.contiguous(), bounds, longest, causal, scale)


@torch.library.custom_op("clipx::one_tile_attention", mutates_args=())
def _attention(qkv_T3HE: Tensor, bounds: Tensor | None, longest: int, causal: bool, scale: float) -> Tensor:
    from clipx.models.attention.kernels import forward_kernel

    num_tokens, _, heads, channels = qkv_T3HE.shape
    mixed_THE = qkv_T3HE.new_empty((num_tokens, heads, channels))
    _launch(forward_kernel, mixed_THE, qkv_T3HE, bounds=bounds, longest=longest, causal=causal, scale=scale)
    return mixed_THE


@torch.library.custom_op("clipx::one_tile_attention_backward", mutates_args=())
def _attention_backward(
    mixed_gradient_THE: Tensor, qkv_T3HE: Tensor, bounds: Tensor | None, longest: int, causal: bool, scale: float
) -> Tensor:
    from clipx.models.attention.kernels import backward_kernel

    gradient_T3HE = torch.empty_like(qkv_T3HE)
    operands = (gradient_T3HE, mixed_gradient_THE, qkv_T3HE)
    _launch(backward_kernel, *operands, bounds=bounds, longest=longest, causal=causal, scale=scale)
    return gradient_T3HE


def _launch(kernel: Any, *tensors: Tensor, bounds: Tensor | None, longest: int, causal: bool, scale: float) -> None:
    """One launch for each tile that some sequence may need; the last of the tensors is (T, 3, H, E)."""
    num_tokens, _, heads, channels = tensors[-1].shape
    largest = next(tile for tile in _TILES if longest <= tile)
    tiles = [tile for tile in _TILES if tile <= largest] if bounds is not None else [largest]
    num_sequences = num_tokens // longest if bounds is None else len(bounds) - 1
    fewest = 0
    for tile in tiles if num_sequences else ():
        kernel[(num_sequences * heads,)](
            *tensors,
            tensors[-1] if bounds is None else bounds,  # never read without bounds
            longest,
            scale,
            H=heads,
            E=channels,
            HAS_BOUNDS=bounds is not None,
            CAUSAL=causal,
            FEWEST=fewest,
            TILE=tile,
            TILE_E=max(16, 1 << (channels - 1).bit_length()),
            num_warps=_TILES[tile],
        )
        fewest = tile


@_attention.register_fake
def _(qkv_T3HE: Tensor, bounds: Tensor | None, longest: int, causal: bool, scale: float) -> Tensor:
    return qkv_T3HE.new_empty((qkv_T3HE.shape[0], *qkv_T3HE.shape[2:]))


@_attention_backward.register_fake
def _(
    mixed_gradient_THE: Tensor, qkv_T3HE: Tensor, bounds: Tensor | None, longest: int, causal: bool, scale: float
) -> Tensor:
    return torch.empty_like(qkv_T3HE)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv_T3HE, bounds, *ctx.settings = inputs
    ctx.save_for_backward(qkv_T3HE, bounds)


def _backward(ctx: Any, mixed_gradient_THE: Tensor) -> tuple[Tensor | None, ...]:
    qkv_T3HE, bounds = ctx.saved_tensors
    gradient_T3HE = _attention_backward(mixed_gradient_THE.contiguous(), qkv_T3HE, bounds, *ctx.settings)
    return gradient_T3HE, None, None, None, None


_attention.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.clipx.one_tile_attention)
def _flops(qkv_shape: torch.Size, bounds_shape: Any, longest: int, *args: Any, **kwargs: Any) -> int:
    """Of the two products of the forward pass; sequences of several lengths count as if all were the longest."""
    num_tokens, _, heads, channels = qkv_shape
    return 4 * num_tokens * longest * heads * channels


@register_flop_formula(torch.ops.clipx.one_tile_attention_backward)
def _backward_flops(gradient_shape: Any, qkv_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
    """Of the five products of the backward pass."""
    return _flops(qkv_shape, *args) * 5 // 2
