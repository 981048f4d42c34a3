"""How far a share of so many pictures can be off."""

import math
from typing import NamedTuple

_Z = 1.959963984540054  # 95% of a normal distribution


class Interval(NamedTuple):
    """The two ends of a 95% interval, as shares."""

    low: float
    high: float


def wilson(share: float, count: int) -> Interval:
    """The 95% interval of a share of `count` independent trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212: the
    shares p at which the one that was found lies within z standard deviations, sqrt(p (1 - p) / count), of p.
    """
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    reach = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    return Interval(max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)))  # 0 and 1 themselves
