"""Packed texts: the positions of the tokens of a flat array, and attention within each text.

A tower's linear layers get real tokens only, in a flat array of all texts; only attention needs to know which tokens
belong to the same text. In half precision on CUDA a varlen kernel reads the flat array directly. Elsewhere attention
gets padded rows, and its result is copied back. Both are exact: a token attends to the same tokens as in a padded
batch.

Shape suffixes: B texts, R the first of them, L positions, N places in rows, T tokens of all texts, H heads, K channels
of a head, C channels. A group is a set of consecutive texts whose rows have the same length.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from clipx.models.attention.backends import attend_by_torch
from clipx.models.attention.one_tile import MAX_TOKENS, one_tile_attention

_KERNEL = SDPBackend.FLASH_ATTENTION
"""Flash attention, and not cuDNN, which torch 2.15 prefers on Hopper: cuDNN makes plans for fixed shapes, but packed
texts have new shapes in every batch; it takes more time on the host; and before 9.25 it gives NaN for empty texts
(NVIDIA/cudnn-frontend #943)."""


class Packing(NamedTuple):
    """Positions of the T tokens of B flat texts. A tuple, because FSDP2 and torch.compile look into tuples."""

    start_B: Tensor
    """int64 (B,), the index of each text's first token in the flat array."""
    last_B: Tensor
    """int64 (B,), the index of each text's last token."""
    bounds: Tensor
    """int32 (B + 1,), 0 and the running sum of lengths: the input of varlen kernels."""
    position_T: Tensor
    """int64 (T,), the position of each token in its text."""
    place_T: Tensor
    """int64 (T,), the place of each token among the N places of the rows; all different."""
    source_N: Tensor
    """int64 (N,), the index of the token in each place; after a text's end a token of another text."""
    filled: tuple[Tensor, ...]
    """One bool (B, L) per group, with the group's B and L: whether a place belongs to the text."""


def pack(lengths_B: Tensor, *, num_tokens: int, max_length: int, groups: Sequence[int] = ()) -> Packing:
    """Computes the positions of the tokens on the lengths' device; the host does not wait for it.

    Args:
        lengths_B: int64 (B,), 0 to `max_length` each.
        num_tokens: the sum T of the lengths, known on the host.
        max_length: L.
        groups: number of texts of each group, B in total. The rows of a group have the length of its longest text,
            which the host reads, so groups are for the CPU only. Empty means one group of length L.
    """
    device = lengths_B.device
    end_B = lengths_B.cumsum(0)
    start_B = end_B - lengths_B
    parts = lengths_B.split(list(groups)) if groups else (lengths_B,)
    starts = start_B.split([len(part) for part in parts])
    positions = [torch.arange(int(part.max()) if groups else max_length, device=device) for part in parts]
    sources = [start[:, None] + position for start, position in zip(starts, positions, strict=True)]
    widths_B = torch.cat(
        [torch.full_like(start, len(position)) for start, position in zip(starts, positions, strict=True)]
    )
    text_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=device), lengths_B, output_size=num_tokens)
    position_T = torch.arange(num_tokens, device=device) - start_B[text_T]
    return Packing(
        start_B=start_B,
        last_B=end_B - 1,
        bounds=functional.pad(end_B, (1, 0)).int(),
        position_T=position_T,
        place_T=(widths_B.cumsum(0) - widths_B)[text_T] + position_T,
        source_N=torch.cat([source.flatten() for source in sources]).clamp_(max=num_tokens - 1),
        filled=tuple(position < part[:, None] for part, position in zip(parts, positions, strict=True)),
    )


def group_by_length(tokens_T: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor, list[int], Tensor]:
    """Sorts texts into groups of similar length (1 to 16, 17 to 32, ...), to save padding; for the CPU.

    Returns:
        The tokens and lengths in their new order, the number of texts of each group for `pack`, and int64 (B,), the new
        index of each text.
    """
    kind_B = (lengths_B + 15) // 16
    order_B = kind_B.argsort(stable=True)
    sorted_B = lengths_B[order_B]
    shift_B = (lengths_B.cumsum(0) - lengths_B)[order_B] - (sorted_B.cumsum(0) - sorted_B)
    source_T = torch.arange(len(tokens_T)) + shift_B.repeat_interleave(sorted_B)
    groups = [num_texts for num_texts in kind_B.bincount().tolist() if num_texts]
    return tokens_T[source_T], sorted_B, groups, order_B.argsort()


def pad_to_bucket(tokens_T: Tensor, lengths_B: Tensor, *, max_length: int, limit: int) -> tuple[Tensor, Tensor, int]:
    """Adds texts of tokens 0 after the real ones, so that there are few different shapes to compile for.

    T grows to the next of 16 sizes per octave, and `max_length` to a multiple of 16. The added tokens, at most T / 16,
    are in B / 16 texts, some of them empty: the number of texts depends only on B. No real text attends to the added
    ones, and their results are not used, so no result and no gradient changes.

    Returns:
        Tokens int64 (T',), lengths int64 (B',) and `max_length`, at most `limit`.
    """
    num_tokens, num_texts = tokens_T.shape[0], lengths_B.shape[0]
    padding = -num_tokens % max(1, 2 ** (num_tokens.bit_length() - 5))
    max_length = min(limit, -(-max_length // 16) * 16)
    before = max_length * torch.arange(-(-num_texts // 16), device=lengths_B.device)
    added = (padding - before).clamp_(0, max_length)
    return functional.pad(tokens_T, (0, padding)), torch.cat((lengths_B, added)), max_length


def pad_groups(
    tokens_T: Tensor, lengths_B: Tensor, groups: list[int], *, limit: int
) -> tuple[Tensor, Tensor, list[int]]:
    """`pad_to_bucket` for the groups of `group_by_length`: texts of tokens 0 as one group more, none of them empty.

    For products in half precision on a CPU: oneDNN keeps memory for every T that it has seen.
    """
    tokens_T, all_B, _ = pad_to_bucket(tokens_T, lengths_B, max_length=limit, limit=limit)
    added_A = all_B[len(lengths_B) :]
    added_A = added_A[added_A > 0]
    return tokens_T, torch.cat((lengths_B, added_A)), [*groups, len(added_A)] if len(added_A) else groups


class _Take(Function):
    """x[index] without repeated indices: its gradient is a copy; torch's own backward pass adds, which is slower."""

    @staticmethod
    def forward(x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, index = inputs
        ctx.save_for_backward(index)
        ctx.num_rows = x.shape[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        full = gradient.new_zeros((ctx.num_rows, *gradient.shape[1:]))
        return full.index_copy_(0, index, gradient), None


class _Spread(Function):
    """x[source_N]; the backward pass reads gradients at `place_T` only: other places must not have any."""

    @staticmethod
    def forward(x_TC: Tensor, source_N: Tensor, place_T: Tensor) -> Tensor:
        return x_TC.index_select(0, source_N)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient_NC: Tensor) -> tuple[Tensor, None, None]:
        (place_T,) = ctx.saved_tensors
        return gradient_NC.index_select(0, place_T), None, None


def take(x: Tensor, index: Tensor) -> Tensor:
    """x[index] along the first dimension, for an index without repetitions."""
    taken: Tensor = _Take.apply(x, index)
    return taken


def as_rows(x_TC: Tensor, packing: Packing) -> list[Tensor]:
    """Copies (T, ...) into padded rows (B, L, ...), one tensor per group.

    After a text's end a row has tokens of another text, which saves a second write. The caller must mask them, by a
    causal mask or by `filled`: their gradient is dropped.
    """
    rows_N: Tensor = _Spread.apply(x_TC, packing.source_N, packing.place_T)
    parts = rows_N.split([filled.numel() for filled in packing.filled]) if len(packing.filled) > 1 else (rows_N,)
    return [part.unflatten(0, filled.shape) for part, filled in zip(parts, packing.filled, strict=True)]


def attend(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packing: Packing, *, causal: bool, scale: float | None = None
) -> Tensor:
    """Attention of every token to the tokens of its own text, or, if `causal`, only to itself and earlier ones.

    Queries, keys, values and the result have the shape (T, H, K); channels must be contiguous, other strides are free.
    `scale` is the factor on q·k; None means K^-0.5.
    """
    if _varlen_takes(q_THK):
        longest = packing.filled[0].shape[1]
        window = (-1, 0) if causal else (-1, -1)
        bounds = (packing.bounds, packing.bounds)
        with sdpa_kernel(_KERNEL):
            mixed = varlen_attn(q_THK, k_THK, v_THK, *bounds, longest, longest, scale=scale, window_size=window)
        assert isinstance(mixed, Tensor)
        return mixed
    rows = (as_rows(x, packing) for x in (q_THK, k_THK, v_THK))
    mixed_N = []
    for filled_BL, q_BLHK, k_BLHK, v_BLHK in zip(packing.filled, *rows, strict=True):
        mixed_BHLK = attend_by_torch(
            q_BLHK.transpose(1, 2),
            k_BLHK.transpose(1, 2),
            v_BLHK.transpose(1, 2),
            attn_mask=None if causal else filled_BL[:, None, None],
            is_causal=causal,
            scale=scale,
        )
        mixed_N.append(mixed_BHLK.transpose(1, 2).flatten(0, 1))
    return take(mixed_N[0] if len(mixed_N) == 1 else torch.cat(mixed_N), packing.place_T)


def attend_packed(qkv_T3HK: Tensor, packing: Packing, *, causal: bool, one_tile: torch.dtype | None) -> Tensor:
    """Attention as `attend` computes it, (T, 3, H, K) to (T, H, K).

    Args:
        qkv_T3HK: queries, keys and values, as one linear layer returns them.
        packing: where the texts stand.
        causal: whether later tokens are left out.
        one_tile: the dtype in which `one_tile_attention` computes it; None means never.
    """
    longest = packing.filled[0].shape[1]
    if _one_tile_takes(qkv_T3HK, one_tile, longest=longest):
        return one_tile_attention(qkv_T3HK, packing.bounds, longest=longest, causal=causal)
    q_THK, k_THK, v_THK = qkv_T3HK.unbind(1)
    return attend(q_THK, k_THK, v_THK, packing, causal=causal)


def attend_once(q_RHK: Tensor, k_THK: Tensor, v_THK: Tensor, packing: Packing) -> Tensor:
    """Attention of one query per text, for the first R texts, to all tokens of the text: (R, H, K)."""
    num_queries = q_RHK.shape[0]
    if _varlen_takes(q_RHK):
        query_bounds = torch.arange(num_queries + 1, device=q_RHK.device, dtype=torch.int32)
        longest = packing.filled[0].shape[1]
        with sdpa_kernel(_KERNEL):
            mixed = varlen_attn(q_RHK, k_THK, v_THK, query_bounds, packing.bounds[: num_queries + 1], 1, longest)
        assert isinstance(mixed, Tensor)
        return mixed
    mixed_R: list[Tensor] = []
    start = 0
    for filled_BL, k_BLHK, v_BLHK in zip(packing.filled, *(as_rows(x, packing) for x in (k_THK, v_THK)), strict=True):
        q_BHK = q_RHK[start : start + filled_BL.shape[0]]
        present = q_BHK.shape[0]
        mixed_BH1K = attend_by_torch(
            q_BHK[:, :, None],
            k_BLHK[:present].transpose(1, 2),
            v_BLHK[:present].transpose(1, 2),
            attn_mask=filled_BL[:present, None, None],
        )
        mixed_R.append(mixed_BH1K.squeeze(2))
        start += present
    return torch.cat(mixed_R)


def _one_tile_takes(qkv: Tensor, dtype: torch.dtype | None, *, longest: int) -> bool:
    return qkv.is_cuda and qkv.dtype == dtype and longest <= MAX_TOKENS


def _varlen_takes(q: Tensor) -> bool:
    """Whether torch's varlen kernel (flash attention) supports queries of this device, dtype and size."""
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
        and _has_flash(q.device)
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_flash(device: torch.device) -> bool:
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)
