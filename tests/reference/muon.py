"""Muon by the textbook, for one matrix, line by line in float64; and how Polar Express finds its polynomials."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Polynomial = tuple[float, float, float]


def newton_schulz(matrix: Tensor, polynomials: Sequence[Polynomial]) -> Tensor:
    """Each polynomial in turn, of the matrix over its Frobenius norm: a X + b X X^T X + c X X^T X X^T X."""
    x = matrix.double() / max(float(matrix.double().norm()), 1e-30)
    for a, b, c in polynomials:
        cubed = x @ x.T @ x
        x = a * x + b * cubed + c * (x @ x.T @ cubed)
    return x


def muon(
    weights: Tensor,
    gradients: Sequence[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    polynomials: Sequence[Polynomial],
    parts: int = 1,
) -> Tensor:
    """The weights after one step per gradient, scaled as in arXiv 2502.16982; `parts` matrices stand in them."""
    results = []
    for number, part in enumerate(weights.double().chunk(parts)):
        buffer = torch.zeros_like(part)
        for gradient in (each.double().chunk(parts)[number] for each in gradients):
            buffer = momentum * buffer + (1 - momentum) * gradient
            update = newton_schulz(momentum * buffer + (1 - momentum) * gradient, polynomials)
            part = part - lr * weight_decay * part - lr * 0.2 * math.sqrt(max(part.shape)) * update  # noqa: PLW2901
        results.append(part)
    return torch.cat(results)


def polar_express(smallest: float, iterations: int, *, margin: float = 0.01) -> tuple[list[Polynomial], float]:
    """Algorithm 1 of arXiv 2505.16932 for degree 5: the polynomials, and how far from 1 they leave [smallest, 1].

    Each is the best for the interval in which the one before leaves singular values; all but the last are taken at
    x / (1 + margin), so that rounding does not carry values out of the interval.
    """
    low, high, found, error = smallest, 1.0, list[Polynomial](), 1.0
    for _ in range(iterations):
        (a, b, c), error = _minimax(low, high)
        found.append((a, b, c))
        low, high = 1 - error, 1 + error
    wide = 1 + margin
    return [(a / wide, b / wide**3, c / wide**5) for a, b, c in found[:-1]] + found[-1:], error


def _minimax(low: float, high: float) -> tuple[Polynomial, float]:
    """The odd polynomial of degree 5 nearest to 1 on an interval, by Remez: its error alternates at four points."""
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    for _ in range(30):
        points = torch.tensor([low, *inner, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], dim=1)
        a, b, c, error = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        inner = [math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1)]
    return (a, b, c), error
