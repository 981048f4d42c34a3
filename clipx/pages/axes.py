"""Axes of charts: the range, the ticks, and where a value stands."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_PADDING = 0.04  # of the range, above and below the values
_LARGEST = 1e100  # of a value: ratios and differences of such are no infinity, and no zero


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers on a stretch of pixels, linear or logarithmic.

    Args:
        low: the number at `start`; above 0 if logarithmic.
        high: the number at `end`, above `low`.
        start: pixel; may be above `end`, as the vertical axis of a picture is.
        end: pixel.
        log: whether equal ratios are equally long.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a number."""
        low, high, here = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers within the axis, about as many as asked for."""
        if self.log and self.high / self.low >= 8:
            return _log_ticks(self.low, self.high, about)
        step = _nice_step((self.high - self.low) / max(about, 1))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def fitted(values: Iterable[float], *, start: float, end: float, log: bool, padded: bool = True) -> Axis:
    """The axis that shows all values, but for those that no axis of its kind can show."""
    shown = [value for value in values if is_shown(value, log=log)]
    low, high = (min(shown), max(shown)) if shown else (1.0, 10.0) if log else (0.0, 1.0)
    high = low if high - low < 1 / _LARGEST and not log else high
    if log:
        ratio = (high / low) ** _PADDING if high > low else 1.5
        ratio = ratio if padded or high == low else 1.0
        return Axis(low / ratio, high * ratio, start, end, log)
    room = (high - low) * _PADDING if high > low else max(abs(high) * 0.1, 0.5)
    if padded or high == low:
        below = 0.0 if low >= 0 and low - room < 0 else low - room  # no room below zero where nothing is negative
        return Axis(below, high + room, start, end)
    return Axis(low, high, start, end)


def is_shown(value: float, *, log: bool) -> bool:
    """Whether an axis can show the number: finite, of a size that somebody means, above 0 on a logarithmic one."""
    return abs(value) <= _LARGEST and (value >= 1 / _LARGEST or not log)


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """The number as its tick says it: short, and as exact as its neighbours ask for."""
    if value == 0:
        return "0"
    size = max(abs(tick) for tick in ticks)
    if size < 1e-2 or size >= 1e15:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit and size >= 10 * 1e3:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.5g}"


def _nice_step(rough: float) -> float:
    """The nearest of 1, 2, 2.5 and 5 times a power of ten at or above."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    factors = (1,) if decades > 2 else (1, 2, 5)
    stride = max(1, decades // (about + 1))
    ticks = [factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
