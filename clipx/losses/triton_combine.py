"""The Triton kernel that puts together what the programs of a tile leave, and adds the pairs that they leave out.

Each program here has BLOCK rows, or BLOCK columns, of the tile. Of the partial results it reads those of BLOCK_K
programs at once, and keeps a running maximum and sum. The arguments are those of `clipx.losses.triton_kernels`.
"""

# Triton's own language: it has no types, and kernels take all they need as arguments.
# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0917

import triton
import triton.language as tl

from clipx.losses.triton_kernels import LN2, MIN, pair_logits


@triton.jit
def _log2_sum_exp2(max_KN, sum_KN, K, N, places, BLOCK_K: tl.constexpr):
    """Of the `places` among N, over K programs, each with a largest logit and a sum relative to it."""
    largest = tl.zeros_like(places).to(tl.float32) + MIN
    total = tl.zeros_like(largest)
    for start in range(0, K, BLOCK_K):
        programs = start + tl.arange(0, BLOCK_K)
        mask = (programs < K)[:, None] & (places < N)[None, :]
        offsets = programs.to(tl.int64)[:, None] * N + places[None, :]
        maxima = tl.load(max_KN + offsets, mask=mask, other=MIN)
        sums = tl.load(sum_KN + offsets, mask=mask, other=0.0)
        before = largest
        largest = tl.maximum(before, tl.max(maxima, 0))
        total = total * tl.exp2(before - largest) + tl.sum(sums * tl.exp2(maxima - largest[None, :]), 0)
    return largest + tl.log2(total)


@triton.jit
def _store_with_pairs(lse_N, lse, pairs, is_pair, places, N):
    """Adds pairs to log sum exp, and stores it in natural units."""
    largest = tl.maximum(lse, pairs)
    both = largest + tl.log2(tl.exp2(lse - largest) + tl.exp2(pairs - largest))
    tl.store(lse_N + places, tl.where(is_pair, both, lse) * LN2, mask=places < N)


@triton.jit
def _store_sums(positive_R, positive_JR, K, R, rows, BLOCK_K: tl.constexpr):
    """Each row's sum over K programs, in natural units."""
    total = tl.zeros_like(rows).to(tl.float32)
    for start in range(0, K, BLOCK_K):
        programs = start + tl.arange(0, BLOCK_K)
        mask = (programs < K)[:, None] & (rows < R)[None, :]
        offsets = programs.to(tl.int64)[:, None] * R + rows[None, :]
        total += tl.sum(tl.load(positive_JR + offsets, mask=mask, other=0.0), 0)
    tl.store(positive_R + rows, total * LN2, mask=rows < R)


@triton.jit(do_not_specialize=["R", "N", "num_I", "num_J", "first_pair_row", "end_pair_row", "pair_column"])
def combine_kernel(
    row_lse_R, column_lse_N, positive_R, row_max_JR, row_sum_JR, column_max_IN, column_sum_IN, positive_JR,
    x_RD, y_ND, logit_scale, R, N, num_I, num_J, first_pair_row, end_pair_row, pair_column,
    D: tl.constexpr, SEVERAL: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """log sum exp of rows and of columns, whose programs come last; each row's sum of similarities to its positives."""
    num_row_programs = tl.cdiv(R, BLOCK)
    if tl.program_id(0) < num_row_programs:
        rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        lse = _log2_sum_exp2(row_max_JR, row_sum_JR, num_J, R, rows, BLOCK_K)
        if SEVERAL:
            tl.store(row_lse_R + rows, lse * LN2, mask=rows < R)
            _store_sums(positive_R, positive_JR, num_J, R, rows, BLOCK_K)
        else:
            is_pair = (rows >= first_pair_row) & (rows < end_pair_row)
            logits = pair_logits(x_RD, y_ND, logit_scale, rows, rows + pair_column, is_pair, D, BLOCK_D)
            _store_with_pairs(row_lse_R, lse, logits, is_pair, rows, R)
            tl.store(positive_R + rows, tl.where(is_pair, logits, 0.0) * LN2, mask=rows < R)
    else:
        columns = (tl.program_id(0) - num_row_programs) * BLOCK + tl.arange(0, BLOCK)
        lse = _log2_sum_exp2(column_max_IN, column_sum_IN, num_I, N, columns, BLOCK_K)
        if SEVERAL:
            tl.store(column_lse_N + columns, lse * LN2, mask=columns < N)
        else:
            rows = columns - pair_column
            is_pair = (rows >= first_pair_row) & (rows < end_pair_row)
            logits = pair_logits(x_RD, y_ND, logit_scale, rows, columns, is_pair, D, BLOCK_D)
            _store_with_pairs(column_lse_N, lse, logits, is_pair, columns, N)
