"""The Triton kernels of the losses; `clipx.losses.triton_ops` launches them.

Each program multiplies BLOCK_R images with BLOCK_N texts in D / BLOCK_D steps and keeps the float32 similarities in
registers. Any D and any number of rows and columns: what lies outside is masked. The common arguments:

- x_RD, y_ND: images and texts, contiguous, of R rows and N columns; logit_scale: s, float32 (1,).
- row_ids_CR, column_ids_CN: int32, not negative, NUM_IDS of each row and column. Where one of a row is equal to that of
  a column in the same place, a similarity is left out.
- row_positive_ids_R, column_positive_ids_N: the same, or None without SEVERAL. Where they are equal image and text
  belong together, and are not left out. Without SEVERAL only pairs do.
- Row i in [first_pair_row, end_pair_row) and column i + pair_column are image and text of one pair. Their ids are
  equal, so they are left out, and come last: they are few, but treated among the others they would take half of the
  registers. As it is 128 are enough, two programs share a multiprocessor, and one multiplies while the other is done.
- EVEN: no block reaches beyond the tile. GAIN: factor of the gradient, `clipx.losses.tiles.grad_scale`.

Each compiles anew for every D, NUM_IDS, SEVERAL and EVEN. Numbers that differ from tile to tile are not specialized on;
but N is where a gradient is stored, for rows that begin at multiples of 16 are stored faster.
"""

# Triton's own language: it has no types, and kernels take all they need as arguments.
# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0917

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MIN = tl.constexpr(-1e30)


@triton.jit
def _similarities(
    x_RD, y_ND, logit_scale, row_ids_CR, column_ids_CN, row_positive_ids_R, column_positive_ids_N, R, N,
    D: tl.constexpr, NUM_IDS: tl.constexpr, SEVERAL: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program's S / log 2, -inf outside of the tile and where left out; its rows and columns.

    For powers of 2 are what the hardware has; the factor within the scale costs no register and no instruction.
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
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
    logits = products * (tl.load(logit_scale) * LOG2_E)
    left_out = _equal(row_ids_CR, column_ids_CN, rows, columns, R, N)
    for place in tl.static_range(1, NUM_IDS):
        left_out |= _equal(row_ids_CR + place * R, column_ids_CN + place * N, rows, columns, R, N)
    if SEVERAL:
        left_out &= _equal(row_positive_ids_R, column_positive_ids_N, rows, columns, R, N) == 0
    logits = tl.where(left_out, -float("inf"), logits)
    if not EVEN:
        logits = tl.where((rows < R)[:, None] & (columns < N)[None, :], logits, -float("inf"))
    return logits, rows, columns


@triton.jit
def _equal(row_ids_R, column_ids_N, rows, columns, R, N):
    """Where ids agree; nowhere outside of the tile."""
    row_ids = tl.load(row_ids_R + rows, mask=rows < R, other=-1)
    column_ids = tl.load(column_ids_N + columns, mask=columns < N, other=-2)
    return row_ids[:, None] == column_ids[None, :]


@triton.jit
def _max_and_sum(logits, axis: tl.constexpr):
    """Along one axis the largest logit m and sum 2^(l - m)."""
    largest = tl.max(logits, axis)
    largest = tl.where(largest == -float("inf"), MIN, largest)  # all left out: -inf - -inf is no number
    return largest, tl.sum(tl.exp2(logits - tl.expand_dims(largest, axis)), axis)


@triton.jit
def _store_gradient(gradient_RN, gradient, rows, columns, R, N, EVEN: tl.constexpr):
    places = gradient_RN + rows.to(tl.int64)[:, None] * N + columns[None, :]
    gradient = gradient.to(gradient_RN.dtype.element_ty)
    if EVEN:
        tl.store(places, gradient)
    else:
        tl.store(places, gradient, mask=(rows < R)[:, None] & (columns < N)[None, :])


@triton.jit
def pair_logits(x_RD, y_ND, logit_scale, rows, columns, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """S / log 2 of the rows' images with the columns' texts, one by one; 0 where not inside.

    Always the sum of the same products in the same order: a pair has one similarity, whoever asks.
    """
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
def _pairs(first_pair_row, end_pair_row, pair_column, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    """The program's first row with a pair, and their end; none if that is no larger."""
    first_row, first_column = tl.program_id(0) * BLOCK_R, tl.program_id(1) * BLOCK_N
    first = tl.maximum(tl.maximum(first_row, first_pair_row), first_column - pair_column)
    return first, tl.minimum(tl.minimum(first_row + BLOCK_R, end_pair_row), first_column + BLOCK_N - pair_column)


@triton.jit
def _store_pair_gradient(gradient_RN, gradient, rows, columns, inside, N):
    tl.debug_barrier()  # until all threads have stored the others, for these stand among them
    places = gradient_RN + rows.to(tl.int64) * N + columns
    tl.store(places, gradient.to(gradient_RN.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["R", "N"])
def statistics_kernel(
    row_max_JR, row_sum_JR, column_max_IN, column_sum_IN, positive_JR,
    x_RD, y_ND, logit_scale, row_ids_CR, column_ids_CN, row_positive_ids_R, column_positive_ids_N, R, N,
    D: tl.constexpr, NUM_IDS: tl.constexpr, SEVERAL: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Largest logit and sum of powers of each row over the program's columns, and each column over its rows.

    In units of log 2, and without pairs, which `clipx.losses.triton_combine` adds. SEVERAL: with them, and also the sum
    of each row's logits with its positives.
    """
    logits, rows, columns = _similarities(
        x_RD, y_ND, logit_scale, row_ids_CR, column_ids_CN, row_positive_ids_R, column_positive_ids_N, R, N,
        D, NUM_IDS, SEVERAL, EVEN, PRECISION, BLOCK_R, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    row_places = tl.program_id(1).to(tl.int64) * R + rows
    column_places = tl.program_id(0).to(tl.int64) * N + columns
    if SEVERAL:
        positive = _equal(row_positive_ids_R, column_positive_ids_N, rows, columns, R, N)
        tl.store(positive_JR + row_places, tl.sum(tl.where(positive, logits, 0.0), 1), mask=rows < R)
    row_max, row_sum = _max_and_sum(logits, 1)
    tl.store(row_max_JR + row_places, row_max, mask=rows < R)
    tl.store(row_sum_JR + row_places, row_sum, mask=rows < R)
    column_max, column_sum = _max_and_sum(logits, 0)
    tl.store(column_max_IN + column_places, column_max, mask=columns < N)
    tl.store(column_sum_IN + column_places, column_sum, mask=columns < N)


@triton.jit(do_not_specialize=["R", "first_pair_row", "end_pair_row", "pair_column"])
def info_nce_gradient_kernel(
    gradient_RN, row_lse_R, column_lse_N, weight_R,
    x_RD, y_ND, logit_scale, row_ids_CR, column_ids_CN, row_positive_ids_R, column_positive_ids_N, R, N,
    first_pair_row, end_pair_row, pair_column,
    D: tl.constexpr, NUM_IDS: tl.constexpr, SEVERAL: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GAIN: tl.constexpr, HALVING: tl.constexpr,
):  # fmt: skip
    """GAIN ([exp(S_ij - r_i) + exp(S_ij - c_j)] / 2 - [j is i's positive] weight_i), weight 1 without SEVERAL.

    HALVING = log2(2 / GAIN), so that both factors stand in the exponent.
    """
    logits, rows, columns = _similarities(
        x_RD, y_ND, logit_scale, row_ids_CR, column_ids_CN, row_positive_ids_R, column_positive_ids_N, R, N,
        D, NUM_IDS, SEVERAL, EVEN, PRECISION, BLOCK_R, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    row_lse = tl.load(row_lse_R + rows, mask=rows < R, other=0.0) * LOG2_E + HALVING
    column_lse = tl.load(column_lse_N + columns, mask=columns < N, other=0.0) * LOG2_E + HALVING
    gradient = tl.exp2(logits - row_lse[:, None]) + tl.exp2(logits - column_lse[None, :])
    if SEVERAL:
        positive = _equal(row_positive_ids_R, column_positive_ids_N, rows, columns, R, N)
        weight = tl.load(weight_R + rows, mask=rows < R, other=0.0) * GAIN
        gradient = tl.where(positive, gradient - weight[:, None], gradient)
    _store_gradient(gradient_RN, gradient, rows, columns, R, N, EVEN)
    if not SEVERAL:
        first, end = _pairs(first_pair_row, end_pair_row, pair_column, BLOCK_R, BLOCK_N)
        if first < end:
            own, inside = rows + pair_column, (rows >= first) & (rows < end)
            # In natural units, as r and c are: where a pair has all of a row, r_i is exactly S_ii.
            pairs = pair_logits(x_RD, y_ND, logit_scale, rows, own, inside, D, BLOCK_D) * LN2
            of_row = tl.exp2((pairs - tl.load(row_lse_R + rows, mask=inside, other=0.0)) * LOG2_E)
            of_column = tl.exp2((pairs - tl.load(column_lse_N + own, mask=inside, other=0.0)) * LOG2_E)
            _store_pair_gradient(gradient_RN, ((of_row + of_column) / 2 - 1) * GAIN, rows, own, inside, N)


@triton.jit
def _softplus_and_sigmoid(x):
    """log(1 + 2^x) and 2^x / (1 + 2^x); 0 and 0 of -inf."""
    small = tl.exp2(-tl.abs(x))
    # log(1 + e) = 2 artanh(q), q = e / (2 + e) <= 1/3, to 2e-7 of itself: log of the rounded 1 + e would lose small e.
    q = small / (2.0 + small)
    q2 = q * q
    series = 1.0 + q2 * (1 / 3 + q2 * (1 / 5 + q2 * (1 / 7 + q2 * (1 / 9 + q2 * (1 / 11)))))
    return tl.maximum(x, 0.0) * LN2 + 2.0 * q * series, tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit(do_not_specialize=["R", "first_pair_row", "end_pair_row", "pair_column"])
def sigmoid_kernel(
    gradient_RN, loss_P, gradient_sum_P, logit_bias,
    x_RD, y_ND, logit_scale, row_ids_CR, column_ids_CN, row_positive_ids_R, column_positive_ids_N, R, N,
    first_pair_row, end_pair_row, pair_column,
    D: tl.constexpr, NUM_IDS: tl.constexpr, SEVERAL: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """GAIN times -z sigmoid(-z l), and over the program's entries the sums of log(1 + exp(-z l)) and of -z sigmoid."""
    logits, rows, columns = _similarities(
        x_RD, y_ND, logit_scale, row_ids_CR, column_ids_CN, row_positive_ids_R, column_positive_ids_N, R, N,
        D, NUM_IDS, SEVERAL, EVEN, PRECISION, BLOCK_R, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    opposed = logits + tl.load(logit_bias) * LOG2_E  # -z l, so far of negatives
    if SEVERAL:
        positive = _equal(row_positive_ids_R, column_positive_ids_N, rows, columns, R, N)
        opposed = tl.where(positive, -opposed, opposed)
    loss, gradient = _softplus_and_sigmoid(opposed)
    if SEVERAL:
        gradient = tl.where(positive, -gradient, gradient)
    loss_sum, gradient_sum = tl.sum(loss), tl.sum(gradient)  # axis by axis triton 3.6 fails for sm_100
    _store_gradient(gradient_RN, gradient * GAIN, rows, columns, R, N, EVEN)
    if not SEVERAL:
        first, end = _pairs(first_pair_row, end_pair_row, pair_column, BLOCK_R, BLOCK_N)
        if first < end:
            own, inside = rows + pair_column, (rows >= first) & (rows < end)
            pairs = pair_logits(x_RD, y_ND, logit_scale, rows, own, inside, D, BLOCK_D) + tl.load(logit_bias) * LOG2_E
            pair_loss, minus_gradient = _softplus_and_sigmoid(tl.where(inside, -pairs, -float("inf")))
            loss_sum += tl.sum(pair_loss, 0)
            gradient_sum -= tl.sum(minus_gradient, 0)
            _store_pair_gradient(gradient_RN, -minus_gradient * GAIN, rows, own, inside, N)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(loss_P + program, loss_sum)
    tl.store(gradient_sum_P + program, gradient_sum)
