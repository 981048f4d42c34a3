"""Intervals of figures by resampling the images of a set with replacement (Efron, Annals of Statistics 7, 1979).

The interval is that of percentiles, 2.5 to 97.5, of B resamples of as many images as the set has. It says how the
figure would vary with other images of the same kind, for one model; not what another training would give.

What an image contributes to an accuracy or a recall is one of few outcomes. So a resample is drawn as the number of
images with each outcome, which is multinomial: that is the same distribution as drawing image by image, and takes no
longer for a million images than for a hundred. Captions are resampled with their image, for they are no independent
draws.

Random numbers come from Philox, a generator of counters (Salmon and others, SC 2011), with a key for each piece of
resamples: the same on all ranks, and in every run with the same version of numpy.

Shapes: B resamples, N images, U different outcomes.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from clipx.counter_random import Stream, key

RESAMPLES = 1000
_NUMBERS = 2**22  # that are drawn at once


def outcome_counts(counts_U: NDArray[np.int64], *, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Yields the resamples in pieces, each as the number of images with every outcome, int64 (piece, U).

    Args:
        counts_U: the number of images with each outcome, int64 (U,).
    """
    total = int(counts_U.sum())
    piece = max(1, _NUMBERS // max(1, len(counts_U)))
    for start in range(0, resamples, piece):
        size = min(piece, resamples - start)
        yield _generator(start).multinomial(total, counts_U / total, size=size)


def image_weights(num_images: int, *, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Yields the resamples in pieces, each as how often every image was drawn, int64 (piece, N)."""
    piece = max(1, _NUMBERS // max(1, num_images))
    for start in range(0, resamples, piece):
        generator = _generator(start)
        drawn = (generator.integers(num_images, size=num_images) for _ in range(min(piece, resamples - start)))
        yield np.stack([np.bincount(index_N, minlength=num_images) for index_N in drawn])


def _generator(piece: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key(0, Stream.BOOTSTRAP, piece)))
