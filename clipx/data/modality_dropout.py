"""Modality dropout: in training the picture or the text of a sample is hidden, so that a model learns to do without.

Shapes: B samples, M modalities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipx import counter_random
from clipx.counter_random import Stream


@dataclass(frozen=True, kw_only=True)
class ModalityDropout:
    """Hides the picture or the text, never both, of samples that have two modalities or more.

    Which one is a function of (seed, epoch, sample), so it depends neither on ranks nor on where a sample is read.
    """

    seed: int
    """Of the run."""
    modalities: Sequence[str]
    """M names, in the order of the column of presence."""
    probability: float
    """Of hiding the picture, and of hiding the text; at most one half."""

    def __call__(self, presence_BM: np.ndarray, *, epoch_B: np.ndarray, sample_id_B: np.ndarray) -> np.ndarray:
        """The presence (B, M), float32, of samples in their epochs; the array itself stays as it is."""
        if not self.probability or len(self.modalities) < 2:
            return presence_BM
        drawn_B = counter_random.keys(self.seed, Stream.ABSENT, epoch_B, sample_id_B).astype(np.float64) * 2.0**-63
        several_B = presence_BM.sum(axis=1) > 1
        low = {"image": 0.0, "text": self.probability}
        hidden_BM = np.zeros(presence_BM.shape, dtype=bool)
        for place, name in enumerate(self.modalities):
            if name in low:
                hidden_BM[:, place] = several_B & (low[name] <= drawn_B) & (drawn_B < low[name] + self.probability)
        return np.where(hidden_BM, np.float32(0), presence_BM)
