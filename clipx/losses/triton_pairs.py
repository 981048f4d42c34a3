"""The Triton kernels beside those of `clipx.losses.triton_kernels`: what is not of the order of all similarities.

They put together what the programs of a tile leave, and add its pairs, an image with its own text each, which those
programs leave out unless there are several positives (SEVERAL). Row i in [first_pair_row, end_pair_row) and column
i + pair_column are a pair. A pair's similarity is always the sum of the same products in the same order, so that it is
the same number in a row, in a column and in the gradient. The other arguments are those of `triton_kernels`.
"""

# Triton's own language: it has no types, and kernels take all they need as arguments.
# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0917

import triton
import triton.language as tl

from clipx.losses.triton_kernels import LN2, LOG2_E, MIN, softplus_and_sigmoid


@triton.jit
def _pair_logits(x_RD, y_ND, logit_scale, rows, columns, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """S / log 2 of the rows' images with the columns' texts, one by one."""
    x = x_RD + rows.to(tl.int64)[:, None] * D
    y = y_ND + columns.to(tl.int64)[:, None] * D
    products = tl.zeros((rows.shape[0], BLOCK_D), tl.float32)
    for start in range(0, D, BLOCK_D):
        places = (start + tl.arange(0, BLOCK_D))[None, :]
        mask = inside[:, None] & (places < D)
        x_block = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        products += x_block * tl.load(y + places, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(products, 1) * (tl.load(logit_scale) * LOG2_E)


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
def _store_with_pairs(lse_N, lse, pair_logits, is_pair, places, N):
    """Adds the pairs' logits to log sum exp, and stores it in natural units."""
    largest = tl.maximum(lse, pair_logits)
    both = largest + tl.log2(tl.exp2(lse - largest) + tl.exp2(pair_logits - largest))
    tl.store(lse_N + places, tl.where(is_pair, both, lse) * LN2, mask=places < N)


@triton.jit
def _store_sums(positive_R, positive_JR, K, R, rows, BLOCK_K: tl.constexpr):
    """Each row's sum over K programs, in natural units."""
    total = tl.zeros_like(rows).to(tl.float32)
    for start in range(0, K, BLOCK_K):
        programs = start + tl.arange(0, BLOCK_K)
        mask = (programs < K)[:, None] & (rows < R)[None, :]
        total += tl.sum(
            tl.load(positive_JR + programs.to(tl.int64)[:, None] * R + rows[None, :], mask=mask, other=0.0), 0
        )
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
            logits = _pair_logits(x_RD, y_ND, logit_scale, rows, rows + pair_column, is_pair, D, BLOCK_D)
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
            logits = _pair_logits(x_RD, y_ND, logit_scale, rows, columns, is_pair, D, BLOCK_D)
            _store_with_pairs(column_lse_N, lse, logits, is_pair, columns, N)


@triton.jit(do_not_specialize=["N", "first_pair_row", "end_pair_row", "pair_column"])
def info_nce_pair_kernel(
    gradient_RN, row_lse_R, column_lse_N, x_RD, y_ND, logit_scale, N, first_pair_row, end_pair_row, pair_column,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """Writes GAIN ([exp(S_ii - r_i) + exp(S_ii - c_i)] / 2 - 1) where it belongs in the tile."""
    rows = first_pair_row + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns, inside = rows + pair_column, rows < end_pair_row
    # In natural units, as r and c are: where a pair has all of a row, r_i is exactly S_ii.
    similarities = _pair_logits(x_RD, y_ND, logit_scale, rows, columns, inside, D, BLOCK_D) * LN2
    by_row = tl.exp2((similarities - tl.load(row_lse_R + rows, mask=inside, other=0.0)) * LOG2_E)
    by_column = tl.exp2((similarities - tl.load(column_lse_N + columns, mask=inside, other=0.0)) * LOG2_E)
    gradient = ((by_row + by_column) / 2 - 1) * GAIN
    places = gradient_RN + rows.to(tl.int64) * N + columns
    tl.store(places, gradient.to(gradient_RN.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N", "first_pair_row", "end_pair_row", "pair_column"])
def sigmoid_pair_kernel(
    gradient_RN, loss_P, gradient_sum_P, logit_bias,
    x_RD, y_ND, logit_scale, N, first_pair_row, end_pair_row, pair_column,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """Writes GAIN times -sigmoid(-l_ii) where it belongs, and the program's sums of log(1 + exp(-l)), -sigmoid(-l)."""
    rows = first_pair_row + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns, inside = rows + pair_column, rows < end_pair_row
    logits = _pair_logits(x_RD, y_ND, logit_scale, rows, columns, inside, D, BLOCK_D)
    opposed = tl.where(inside, -(logits + tl.load(logit_bias) * LOG2_E), -float("inf"))
    loss, gradient = softplus_and_sigmoid(opposed)
    tl.store(loss_P + tl.program_id(0), tl.sum(loss, 0))
    tl.store(gradient_sum_P + tl.program_id(0), -tl.sum(gradient, 0))
    places = gradient_RN + rows.to(tl.int64) * N + columns
    tl.store(places, (-gradient * GAIN).to(gradient_RN.dtype.element_ty), mask=inside)
