"""The Newton-Schulz iteration of Muon: a matrix to one with the same singular vectors, and singular values near 1.

Each iteration applies an odd polynomial of degree 5 to all singular values at once, by three matrix products:
A = X X^T, then X <- (a + b A + c A^2) X. The polynomials are those of Polar Express (arXiv 2505.16932, algorithm 1):
each is the best for the interval in which the one before it leaves the singular values.

Shape suffixes: N matrices of one shape, R rows, C columns; S the smaller of the two.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from clipx.config.optim import NEWTON_SCHULZ_ITERATIONS

Polynomial = tuple[float, float, float]

_LAST: tuple[Polynomial, ...] = (
    (4.20616, -3.06128, 0.55735),
    (4.17767, -3.04194, 0.55518),
    (4.06159, -2.96276, 0.54633),
    (3.64762, -2.67515, 0.51421),
    (2.73295, -2.03548, 0.45910),
)
_FIRST: dict[int, Polynomial] = {
    2: (7.02616, -19.11941, 13.63609),
    3: (8.05012, -23.06834, 16.71055),
    4: (8.33753, -24.18021, 17.57738),
    5: (8.40809, -24.45339, 17.79042),
    6: (8.42485, -24.51825, 17.84101),
}
assert (min(_FIRST), max(_FIRST)) == NEWTON_SCHULZ_ITERATIONS

_EPS = 1e-18
"""Smallest norm that is divided by: a matrix of zeros stays one. In float32 smaller elements have no squares, so that a
norm says nothing of them."""
_RESTART = 3
"""The most iterations on a Gram matrix alone."""
_MIN_GRAM = 64
"""Fewest rows for `_by_gram`: of fewer, some singular values of a matrix of norm 1 are where the first polynomial is
steepest."""
_CACHE_BYTES = 2**21
"""What a CPU works on at a time, so that it stays in a core's own cache."""


def polynomials(iterations: int) -> tuple[Polynomial, ...]:
    """The coefficients (a, b, c) of x <- a x + b x^3 + c x^5, in their order.

    Of singular values up to 1 (a matrix is divided by its Frobenius norm first) they bring those above a smallest one
    to within a third of 1: 0.038 for 2 iterations, 0.0091 for 3, 0.0022 for 4, 0.0005 for 5 and 0.00013 for 6. Five of
    Jordan's ("Muon", 2024), (3.4445, -4.7750, 2.0315), bring those above 0.0015 to between 0.68 and 1.2. With the
    paper's margin of 1% for rounding, and no cushion: `tests/reference/muon.py` derives them.
    """
    return (_FIRST[iterations], *_LAST[len(_LAST) + 1 - iterations :])


def orthogonalised(
    matrices: Sequence[Tensor], result_dtype: torch.dtype, *, iterations: int, compute_dtype: torch.dtype
) -> list[Tensor]:
    """Applies the iteration to every matrix, divided by its Frobenius norm. Matrices of zeros stay zero.

    Equal shapes are computed together. The host does not wait.

    Args:
        matrices: of two dimensions, on one device, of any shapes; they do not change.
        result_dtype: of what is returned.
        iterations: 2 to 6.
        compute_dtype: of the products; norms have at least float32.
    """
    steps = polynomials(iterations)
    results = list(matrices)
    for numbers in _batches(matrices, torch.empty((), dtype=compute_dtype).element_size()):
        x_NRC = _normalised(torch.stack([matrices[number] for number in numbers]).to(compute_dtype))
        for number, x_RC in zip(numbers, _iterate(x_NRC, steps).to(result_dtype).unbind(), strict=True):
            results[number] = x_RC
    return results


def newton_schulz_flops(rows: int, columns: int, *, iterations: int) -> float:
    """Floating-point operations of one matrix by the three products of an iteration, two for a multiply and add."""
    short, long = sorted((rows, columns))
    return iterations * 2.0 * short * short * (2 * long + short)


def _batches(matrices: Sequence[Tensor], element_size: int) -> list[list[int]]:
    """The numbers of matrices that are computed together: all of a shape; on a CPU as many as its cache holds."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, matrix in enumerate(matrices):
        by_shape.setdefault(tuple(matrix.shape), []).append(number)
    batches: list[list[int]] = []
    for (rows, columns), numbers in by_shape.items():
        size = len(numbers)
        if matrices[numbers[0]].device.type == "cpu":
            short = min(rows, columns)
            size = max(1, _CACHE_BYTES // (2 * element_size * (rows * columns + short * short)))
        batches += [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return batches


def _normalised(x_NRC: Tensor) -> Tensor:
    wide = torch.promote_types(x_NRC.dtype, torch.float32)
    norm_N11 = torch.linalg.vector_norm(x_NRC.flatten(1), dim=1, dtype=wide)[:, None, None]
    return x_NRC.div_(norm_N11.clamp(min=_EPS).to(x_NRC.dtype))


def _iterate(x_NRC: Tensor, steps: Sequence[Polynomial]) -> Tensor:
    """The iteration, by the form that has fewer operations; X^T X stands for X X^T where it is smaller.

    The second form holds squares of singular values, which half precision loses, and in float32 so does a small matrix.
    """
    short, long = sorted(x_NRC.shape[1:])
    if long >= 2 * short >= 2 * _MIN_GRAM and x_NRC.dtype in (torch.float32, torch.float64):
        return _by_gram(x_NRC, steps)
    return _by_products(x_NRC, steps)


def _by_products(x_NRC: Tensor, steps: Sequence[Polynomial]) -> Tensor:
    """X <- (a + b A + c A^2) X with A = X X^T: 4 R^2 C + 2 R^3 operations an iteration, if R is the smaller."""
    gram_NSS, factor_NSS, other_NRC = _square(x_NRC), _square(x_NRC), torch.empty_like(x_NRC)
    for a, b, c in steps:
        _gram(x_NRC, out=gram_NSS)
        torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c, out=factor_NSS)
        # a is added at last: on the diagonal of a matrix in half precision it would swallow the rest
        left, right = (x_NRC, factor_NSS) if _is_upright(x_NRC) else (factor_NSS, x_NRC)
        torch.baddbmm(x_NRC, left, right, beta=a, out=other_NRC)
        x_NRC, other_NRC = other_NRC, x_NRC
    return x_NRC


def _by_gram(x_NRC: Tensor, steps: Sequence[Polynomial]) -> Tensor:
    """The same by the Gram matrix alone, for up to three iterations at a time: for three 4 R^2 C + 18 R^3 operations.

    With A = X X^T and P = a + b A + c A^2 the next Gram matrix is P A P, for all of them commute. X itself is brought
    up to date after three iterations and not only at the end, because A holds squares of singular values: of small
    ones float32 keeps few digits, until the first iterations have raised them.
    """
    gram_NSS, factor_NSS, product_NSS, other_NSS = (_square(x_NRC) for _ in range(4))
    other_NRC = torch.empty_like(x_NRC)
    length = -(-len(steps) // -(-len(steps) // _RESTART))  # four are two and two
    for start, end in pairwise((*range(0, len(steps), length), len(steps))):
        _gram(x_NRC, out=gram_NSS)
        _factor(gram_NSS, steps[start], out=product_NSS)
        applied_NSS = product_NSS
        for step in steps[start + 1 : end]:
            torch.bmm(applied_NSS, gram_NSS, out=other_NSS)
            torch.bmm(applied_NSS, other_NSS, out=gram_NSS)
            _factor(gram_NSS, step, out=factor_NSS)
            applied_NSS = factor_NSS
            torch.bmm(factor_NSS, product_NSS, out=other_NSS)
            product_NSS, other_NSS = other_NSS, product_NSS
        left, right = (x_NRC, product_NSS) if _is_upright(x_NRC) else (product_NSS, x_NRC)
        torch.bmm(left, right, out=other_NRC)
        x_NRC, other_NRC = other_NRC, x_NRC
    return x_NRC


def _is_upright(x_NRC: Tensor) -> bool:
    return x_NRC.shape[1] > x_NRC.shape[2]


def _gram(x_NRC: Tensor, *, out: Tensor) -> None:
    """The smaller of X X^T and X^T X."""
    left, right = (x_NRC.mT, x_NRC) if _is_upright(x_NRC) else (x_NRC, x_NRC.mT)
    torch.bmm(left, right, out=out)


def _factor(gram_NSS: Tensor, step: Polynomial, *, out: Tensor) -> None:
    """P = a + b A + c A^2."""
    a, b, c = step
    torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c, out=out)
    out.diagonal(dim1=1, dim2=2).add_(a)


def _square(x_NRC: Tensor) -> Tensor:
    short = min(x_NRC.shape[1:])
    return x_NRC.new_empty((x_NRC.shape[0], short, short))
