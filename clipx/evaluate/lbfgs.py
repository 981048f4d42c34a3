"""L-BFGS for smooth convex functions in float64 (Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4).

torch.optim.LBFGS compares values of the function to accept a step. Near the minimum their differences drown in
rounding while gradients are still exact: at a gradient of 1e-8 the value has 1e-16 to gain. This one accepts by slopes
(Hager and Zhang, "A new conjugate gradient method with guaranteed descent and an efficient line search", SIAM J. Optim.
16, 2005, equation 4.3), so that it reaches gradients of 1e-12, which exact coefficients need.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[float, Tensor]]
"""Value and gradient at a point."""

_HISTORY = 20
"""Pairs of step and change of gradient that are kept; a fit of a probe takes 20 to 100 steps."""
_FLATTER, _UPHILL = 0.9, 0.8
"""A step is accepted when its end's slope is between -0.9 and 0.8 times the starting slope's size (c2 and 1 - 2 delta
of Hager and Zhang's condition, with their c2 = 0.9 and delta = 0.1)."""
_ROUNDING = 1e-12  # by which the value may rise, relative to its size
_MAX_TRIALS = 40


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """Where the search ended."""

    point: Tensor
    value: float
    largest_slope: float
    """The largest absolute entry of the gradient."""
    evaluations: int
    converged: bool
    """`largest_slope` is at most the tolerance."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    point: Tensor
    value: float
    gradient: Tensor


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A step, the change of the gradient along it, and their product."""

    moved: Tensor
    change: Tensor
    curvature: float


def _at(objective: Objective, point: Tensor) -> _Place:
    value, gradient = objective(point)
    return _Place(point=point, value=value, gradient=gradient)


def minimize(objective: Objective, start: Tensor, *, tolerance: float, max_evaluations: int) -> Minimum:
    """The minimum of a convex function.

    Args:
        objective: value and gradient; it must be convex and bounded below.
        start: float64, any shape.
        tolerance: the search ends when no entry of the gradient is larger. It also ends, not converged, when rounding
            leaves no better point or `max_evaluations` are used up.
        max_evaluations: of `objective`.
    """
    place = _at(objective, start)
    evaluations = 1
    pairs: deque[_Pair] = deque(maxlen=_HISTORY)
    while (slope := float(place.gradient.abs().max())) > tolerance and evaluations < max_evaluations:
        direction = -_inverse_hessian_times(place.gradient, pairs)
        step = 1.0 if pairs else min(1.0, 1.0 / float(place.gradient.norm()))
        found, used = _search_line(objective, place, direction, step=step)
        evaluations += used
        if found is None and not pairs:
            break
        if found is None:  # the pairs no longer describe the function where rounding rules: begin anew
            pairs.clear()
            continue
        moved, change = found.point - place.point, found.gradient - place.gradient
        if (curvature := _dot(moved, change)) > 0:
            pairs.append(_Pair(moved=moved, change=change, curvature=curvature))
        place = found
    return Minimum(
        point=place.point,
        value=place.value,
        largest_slope=slope,
        evaluations=evaluations,
        converged=slope <= tolerance,
    )


def _inverse_hessian_times(gradient: Tensor, pairs: deque[_Pair]) -> Tensor:
    """The two-loop recursion."""
    result = gradient.clone()
    factors = []
    for pair in reversed(pairs):
        factor = _dot(pair.moved, result) / pair.curvature
        factors.append(factor)
        result.add_(pair.change, alpha=-factor)
    if pairs:
        result *= pairs[-1].curvature / _dot(pairs[-1].change, pairs[-1].change)
    for pair, factor in zip(pairs, reversed(factors), strict=True):
        result.add_(pair.moved, alpha=factor - _dot(pair.change, result) / pair.curvature)
    return result


def _dot(first: Tensor, second: Tensor) -> float:
    return float(torch.dot(first.flatten(), second.flatten()))


def _search_line(objective: Objective, place: _Place, direction: Tensor, *, step: float) -> tuple[_Place | None, int]:
    """A step along a direction of descent, and how many evaluations it took; None when rounding leaves none.

    The slope of a convex function only grows along a line, so that its sign says on which side the minimum lies.
    """
    slope = _dot(place.gradient, direction)
    highest = place.value + _ROUNDING * max(1.0, abs(place.value))
    low, low_slope, high, high_slope = 0.0, slope, float("inf"), float("inf")
    if slope >= 0:
        return None, 0
    for trial in range(1, _MAX_TRIALS + 1):
        point = place.point + step * direction
        there = _at(objective, point)
        slope_there = _dot(there.gradient, direction)
        if -_FLATTER * abs(slope) <= slope_there <= _UPHILL * abs(slope) and there.value <= highest:
            return there, trial
        if slope_there < 0 and there.value <= highest:
            low, low_slope = step, slope_there
        else:
            high, high_slope = step, slope_there
        step = _next_step(low, low_slope, high, high_slope)
    return None, _MAX_TRIALS


def _next_step(low: float, low_slope: float, high: float, high_slope: float) -> float:
    """Where the slope would vanish if it were linear, kept away from the ends of the bracket."""
    if high == float("inf"):
        return 4 * low
    width = high - low
    secant = low + width * low_slope / (low_slope - high_slope) if high_slope > 0 else low + width / 2
    return min(max(secant, low + 0.1 * width), high - 0.1 * width)
