"""The Triton kernels of the losses; `clipx.losses.triton_ops` launches them.

Each program multiplies BLOCK_R images with BLOCK_N texts in D / BLOCK_D steps and keeps the float32 similarities in
registers. Any D and any number of rows and columns: what lies outside is masked. The common arguments:

- x_RD, y_ND: images and texts, contiguous, of R rows and N columns; logit_scale: s, float32 (1,).
- row_ids_R, column_ids_N: int32; where they are equal and no pair is, similarities are left out (HAS_IDS).
- Row i in [first_pair_row, end_pair_row) and column i + pair_column are image and text of one pair.
- EVEN: no block reaches beyond the tile. GAIN: factor of the gradient, `clipx.losses.tiles.grad_scale`.

Each compiles anew for every D, and with or without ids and EVEN. Numbers that differ from tile to tile are not
specialized on; but N is where a gradient is stored, for rows that begin at multiples of 16 are stored faster.
"""

# Triton's own language: it has no types, and kernels take all they need as arguments.
# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0917

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
MIN = tl.constexpr(-1e30)


@triton.jit
def _similarities(
    x_RD, y_ND, logit_scale, row_ids_R, column_ids_N, R, N, first_pair_row, end_pair_row, pair_column,
    D: tl.constexpr, HAS_IDS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program's S = s x y^T, -inf outside of the tile and where left out; its rows and columns; any pairs there?"""
    first_row, first_column = tl.program_id(0) * BLOCK_R, tl.program_id(1) * BLOCK_N
    rows, columns = first_row + tl.arange(0, BLOCK_R), first_column + tl.arange(0, BLOCK_N)
    # Rows outside read others' numbers, so that the loop needs no mask for them; they are masked at its end.
    x = x_RD + (rows % R).to(tl.int64)[:, None] * D
    y = y_ND + (columns % N).to(tl.int64)[None, :] * D
    products = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_D):
        places = start + tl.arange(0, BLOCK_D)
        if D % BLOCK_D == 0:
            x_block = tl.load(x + places[None, :])
            y_block = tl.load(y + places[:, None])
        else:
            x_block = tl.load(x + places[None, :], mask=places[None, :] < D, other=0.0)
            y_block = tl.load(y + places[:, None], mask=places[:, None] < D, other=0.0)
        products = tl.dot(x_block, y_block, products, input_precision=PRECISION)
    logits = products * tl.load(logit_scale)
    pairs_begin = tl.maximum(first_row, first_pair_row) + pair_column
    pairs_end = tl.minimum(first_row + BLOCK_R, end_pair_row) + pair_column
    has_pairs = tl.maximum(pairs_begin, first_column) < tl.minimum(pairs_end, first_column + BLOCK_N)
    if HAS_IDS:
        row_ids = tl.load(row_ids_R + rows, mask=rows < R, other=0)
        column_ids = tl.load(column_ids_N + columns, mask=columns < N, other=0)
        others = tl.where(row_ids[:, None] == column_ids[None, :], -float("inf"), logits)
        if has_pairs:
            others = tl.where(_is_pair(rows, columns, first_pair_row, end_pair_row, pair_column), logits, others)
        logits = others
    if not EVEN:
        logits = tl.where((rows < R)[:, None] & (columns < N)[None, :], logits, -float("inf"))
    return logits, rows, columns, has_pairs


@triton.jit
def _is_pair(rows, columns, first_pair_row, end_pair_row, pair_column):
    """Where image and text belong together."""
    with_pair = (rows >= first_pair_row) & (rows < end_pair_row)
    return ((rows + pair_column)[:, None] == columns[None, :]) & with_pair[:, None]


@triton.jit
def _max_and_sum(logits, axis: tl.constexpr):
    """Along one axis the largest logit m and sum exp(S - m). Powers of 2, which the hardware has."""
    largest = tl.max(logits, axis)
    largest = tl.where(largest == -float("inf"), MIN, largest)  # all left out: -inf - -inf is no number
    return largest, tl.sum(tl.exp2(logits * LOG2_E - tl.expand_dims(largest * LOG2_E, axis)), axis)


@triton.jit
def _store_gradient(gradient_RN, gradient, rows, columns, R, N, EVEN: tl.constexpr):
    places = gradient_RN + rows.to(tl.int64)[:, None] * N + columns[None, :]
    gradient = gradient.to(gradient_RN.dtype.element_ty)
    if EVEN:
        tl.store(places, gradient)
    else:
        tl.store(places, gradient, mask=(rows < R)[:, None] & (columns < N)[None, :])


@triton.jit(do_not_specialize=["R", "N", "first_pair_row", "end_pair_row", "pair_column"])
def statistics_kernel(
    row_max_JR, row_sum_JR, column_max_IN, column_sum_IN, pair_R,
    x_RD, y_ND, logit_scale, row_ids_R, column_ids_N, R, N, first_pair_row, end_pair_row, pair_column,
    D: tl.constexpr, HAS_IDS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Largest logit and sum of exp of each row over the program's columns, and each column over its rows; the pairs."""
    logits, rows, columns, has_pairs = _similarities(
        x_RD, y_ND, logit_scale, row_ids_R, column_ids_N, R, N, first_pair_row, end_pair_row, pair_column,
        D, HAS_IDS, EVEN, PRECISION, BLOCK_R, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    if has_pairs:
        is_pair = _is_pair(rows, columns, first_pair_row, end_pair_row, pair_column)
        tl.store(pair_R + rows, tl.sum(tl.where(is_pair, logits, 0.0), 1), mask=tl.max(is_pair.to(tl.int32), 1) == 1)
    row_places = tl.program_id(1).to(tl.int64) * R + rows
    column_places = tl.program_id(0).to(tl.int64) * N + columns
    row_max, row_sum = _max_and_sum(logits, 1)
    tl.store(row_max_JR + row_places, row_max, mask=rows < R)
    tl.store(row_sum_JR + row_places, row_sum, mask=rows < R)
    column_max, column_sum = _max_and_sum(logits, 0)
    tl.store(column_max_IN + column_places, column_max, mask=columns < N)
    tl.store(column_sum_IN + column_places, column_sum, mask=columns < N)


@triton.jit(do_not_specialize=["R", "first_pair_row", "end_pair_row", "pair_column"])
def info_nce_gradient_kernel(
    gradient_RN, row_lse_R, column_lse_N,
    x_RD, y_ND, logit_scale, row_ids_R, column_ids_N, R, N, first_pair_row, end_pair_row, pair_column,
    D: tl.constexpr, HAS_IDS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """GAIN ([exp(S_ij - r_i) + exp(S_ij - c_j)] / 2 - [i = j])."""
    logits, rows, columns, has_pairs = _similarities(
        x_RD, y_ND, logit_scale, row_ids_R, column_ids_N, R, N, first_pair_row, end_pair_row, pair_column,
        D, HAS_IDS, EVEN, PRECISION, BLOCK_R, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    row_lse = tl.load(row_lse_R + rows, mask=rows < R, other=0.0) * LOG2_E
    column_lse = tl.load(column_lse_N + columns, mask=columns < N, other=0.0) * LOG2_E
    by_row = tl.exp2(logits * LOG2_E - row_lse[:, None])
    by_column = tl.exp2(logits * LOG2_E - column_lse[None, :])
    gradient = (by_row + by_column) * (GAIN / 2)
    if has_pairs:
        is_pair = _is_pair(rows, columns, first_pair_row, end_pair_row, pair_column)
        gradient = tl.where(is_pair, gradient - GAIN, gradient)
    _store_gradient(gradient_RN, gradient, rows, columns, R, N, EVEN)


@triton.jit(do_not_specialize=["R", "first_pair_row", "end_pair_row", "pair_column"])
def sigmoid_kernel(
    gradient_RN, loss_IJ, gradient_sum_IJ, logit_bias,
    x_RD, y_ND, logit_scale, row_ids_R, column_ids_N, R, N, first_pair_row, end_pair_row, pair_column,
    D: tl.constexpr, HAS_IDS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """GAIN times -z sigmoid(-z l), and over the program's entries the sums of log(1 + exp(-z l)) and of -z sigmoid."""
    logits, rows, columns, has_pairs = _similarities(
        x_RD, y_ND, logit_scale, row_ids_R, column_ids_N, R, N, first_pair_row, end_pair_row, pair_column,
        D, HAS_IDS, EVEN, PRECISION, BLOCK_R, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    opposed = logits + tl.load(logit_bias)  # -z l, so far of negatives
    if has_pairs:
        is_pair = _is_pair(rows, columns, first_pair_row, end_pair_row, pair_column)
        opposed = tl.where(is_pair, -opposed, opposed)
    small = tl.exp2(-tl.abs(opposed) * LOG2_E)
    # log(1 + e) = 2 artanh(q), q = e / (2 + e) <= 1/3, to 2e-7 of itself: log of the rounded 1 + e would lose small e.
    q = small / (2.0 + small)
    q2 = q * q
    series = 1.0 + q2 * (1 / 3 + q2 * (1 / 5 + q2 * (1 / 7 + q2 * (1 / 9 + q2 * (1 / 11)))))
    loss = tl.maximum(opposed, 0.0) + 2.0 * q * series
    gradient = tl.where(opposed >= 0, 1.0, small) / (1.0 + small)
    if has_pairs:
        is_pair = _is_pair(rows, columns, first_pair_row, end_pair_row, pair_column)
        gradient = tl.where(is_pair, -gradient, gradient)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(loss_IJ + program, tl.sum(tl.sum(loss, 1), 0))
    tl.store(gradient_sum_IJ + program, tl.sum(tl.sum(gradient, 1), 0))
    _store_gradient(gradient_RN, gradient * GAIN, rows, columns, R, N, EVEN)
