"""Leaps of the loss: a pure function of the losses before, so that all ranks see the same one at the same step."""

import math

import numpy as np

from clipx.config.checkpoint import SpikeConfig

_SIGMA_PER_MAD = 1.4826  # of a normal distribution: 1 / its 75% quantile
# On a plateau the deviation goes to zero, and the smallest rise would be many of them. So a deviation counts as 1% of
# the median at least, since losses differ in scale: at the default z_score of 8, a leap is a rise by 8% or more. Near
# zero, where losses differ by rounding, it counts as 1% of 0.1.
_LEAST_SIGMA = 0.01
_LEAST_MEDIAN = 0.1


class SpikeDetector:
    """Compares each loss with the last ones; a slow rise is no leap, for the window rises with it.

    Args:
        config: what a leap is.
        recent: the last losses that were none, oldest first: all the state there is. Kept up to date in place, for
            whoever saves it.
    """

    def __init__(self, config: SpikeConfig, recent: list[float]) -> None:
        self._config = config
        self._recent = recent
        del recent[: -config.window]

    def look(self, loss: float) -> float | None:
        """By how many robust standard deviations a loss leaps above the median of the last ones; None: it does not.

        A leap, and a loss that is not finite, stay out of the losses that later ones are compared with.
        """
        if not math.isfinite(loss):
            return None
        if len(self._recent) == self._config.window:
            median = float(np.median(self._recent))
            deviation = float(np.median(np.abs(np.subtract(self._recent, median))))
            z_score = (loss - median) / max(_SIGMA_PER_MAD * deviation, _LEAST_SIGMA * max(median, _LEAST_MEDIAN))
            if z_score > self._config.z_score:
                return z_score
        self._recent.append(loss)
        del self._recent[: -self._config.window]
        return None

    def reset(self) -> None:
        """Forgets the losses: those of another phase have another level."""
        self._recent.clear()
