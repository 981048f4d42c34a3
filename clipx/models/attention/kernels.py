"""The Triton kernels of attention in one tile; `clipx.models.attention.one_tile` launches them.

One program computes one head of one sequence: all its queries and keys fit into one tile, so that the softmax of a row
is whole, nothing is kept for the backward pass but the input, and no sum goes through memory. The common arguments:

- qkv_T3HE: queries, keys and values of all sequences' T tokens, contiguous, as one linear layer returns them.
- bounds: int32, 0 and the running sum of the sequences' lengths (HAS_BOUNDS); else each has `length` tokens.
- A program ends at once if its sequence has at most FEWEST tokens or more than TILE: other launches have other tiles.
- scale: the factor on q k; CAUSAL: a token attends to itself and earlier ones only.
- H heads, E channels of a head; TILE, TILE_E: powers of 2 that hold a sequence and a head.

Compiled anew for each H, E and tile, and not for the lengths.
"""

# Triton's own language: it has no types, and kernels take all they need as arguments.
# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0917

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _sequence(bounds, length, H: tl.constexpr, HAS_BOUNDS: tl.constexpr):
    """The program's head; the first token of its sequence, and the number of tokens."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    if HAS_BOUNDS:
        start = tl.load(bounds + sequence)
        return head, start.to(tl.int64), tl.load(bounds + sequence + 1) - start
    return head, sequence.to(tl.int64) * length, length


@triton.jit
def _places(token_size: tl.constexpr, TILE: tl.constexpr, TILE_E: tl.constexpr):
    """Where the channels of one head stand, from those of its first token on."""
    return tl.arange(0, TILE)[:, None] * token_size + tl.arange(0, TILE_E)[None, :]


@triton.jit
def _operands(queries, size, H: tl.constexpr, E: tl.constexpr, TILE: tl.constexpr, TILE_E: tl.constexpr):
    """Queries, keys and values of a sequence and head whose first query is given; what is inside: the others are 0."""
    inside = (tl.arange(0, TILE) < size)[:, None] & (tl.arange(0, TILE_E) < E)[None, :]
    places = _places(3 * H * E, TILE, TILE_E)
    q = tl.load(queries + places, mask=inside, other=0.0)
    k = tl.load(queries + H * E + places, mask=inside, other=0.0)
    v = tl.load(queries + 2 * H * E + places, mask=inside, other=0.0)
    return q, k, v, inside


@triton.jit
def _probabilities(q, k, scale, size, TILE: tl.constexpr, CAUSAL: tl.constexpr):
    """exp(S - max S) of each row of S = scale q k^T, and the row's sum; keys outside of the sequence have 0."""
    rows = tl.arange(0, TILE)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
    attended = (rows < size)[None, :]
    if CAUSAL:
        attended = attended & (rows[None, :] <= rows[:, None])
    logits = tl.where(attended, logits, -float("inf"))  # the first key is attended by all rows, also by those outside
    weights = tl.exp2(logits - tl.max(logits, 1)[:, None])
    return weights, tl.sum(weights, 1)


@triton.jit(do_not_specialize=["length"])
def forward_kernel(
    mixed_THE, qkv_T3HE, bounds, length, scale,
    H: tl.constexpr, E: tl.constexpr, HAS_BOUNDS: tl.constexpr, CAUSAL: tl.constexpr,
    FEWEST: tl.constexpr, TILE: tl.constexpr, TILE_E: tl.constexpr,
):  # fmt: skip
    """softmax(scale q k^T) v."""
    head, start, size = _sequence(bounds, length, H, HAS_BOUNDS)
    if size <= FEWEST or size > TILE:
        return
    first = start * (3 * H * E) + head * E
    q, k, v, inside = _operands(qkv_T3HE + first, size, H, E, TILE, TILE_E)
    weights, sums = _probabilities(q, k, scale, size, TILE, CAUSAL)
    mixed = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / sums[:, None]
    results = mixed_THE + start * (H * E) + head * E + _places(H * E, TILE, TILE_E)
    tl.store(results, mixed.to(v.dtype), mask=inside)


@triton.jit(do_not_specialize=["length"])
def backward_kernel(
    gradient_T3HE, mixed_gradient_THE, qkv_T3HE, bounds, length, scale,
    H: tl.constexpr, E: tl.constexpr, HAS_BOUNDS: tl.constexpr, CAUSAL: tl.constexpr,
    FEWEST: tl.constexpr, TILE: tl.constexpr, TILE_E: tl.constexpr,
):  # fmt: skip
    """With P the softmax and dP = dO v^T: dS = P (dP - sum_j P dP), dq = scale dS k, dk = scale dS^T q, dv = P^T dO."""
    head, start, size = _sequence(bounds, length, H, HAS_BOUNDS)
    if size <= FEWEST or size > TILE:
        return
    first = start * (3 * H * E) + head * E
    q, k, v, inside = _operands(qkv_T3HE + first, size, H, E, TILE, TILE_E)
    results = mixed_gradient_THE + start * (H * E) + head * E + _places(H * E, TILE, TILE_E)
    mixed_gradient = tl.load(results, mask=inside, other=0.0)  # rows outside have 0, so they change no key's gradient
    weights, sums = _probabilities(q, k, scale, size, TILE, CAUSAL)
    weights = weights / sums[:, None]
    gradients = gradient_T3HE + first + _places(3 * H * E, TILE, TILE_E)
    v_gradient = tl.dot(tl.trans(weights.to(v.dtype)), mixed_gradient, input_precision="ieee")
    tl.store(gradients + 2 * H * E, v_gradient.to(v.dtype), mask=inside)
    weights_gradient = tl.dot(mixed_gradient, tl.trans(v), input_precision="ieee")
    mean = tl.sum(weights * weights_gradient, 1)
    logits_gradient = (weights * (weights_gradient - mean[:, None])).to(v.dtype)
    q_gradient = tl.dot(logits_gradient, k, input_precision="ieee") * scale
    tl.store(gradients, q_gradient.to(v.dtype), mask=inside)
    k_gradient = tl.dot(tl.trans(logits_gradient), q, input_precision="ieee") * scale
    tl.store(gradients + H * E, k_gradient.to(v.dtype), mask=inside)
