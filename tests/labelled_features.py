"""Embeddings with classes, as of an encoder that tells them apart somewhat."""

from collections.abc import Sequence

import numpy as np

from clipx.evaluate.features import Features
from clipx.evaluate.mapped_rows import TextList


def features(image_ND: np.ndarray, label_N: Sequence[int] | np.ndarray) -> Features:
    """Embeddings as they are, with these classes."""
    names = TextList.of(f"picture {i}" for i in range(len(image_ND)))
    return Features(image_ND=image_ND.astype(np.float32), names=names, label_N=np.asarray(label_N, dtype=np.int64))


def clouds(num_images: int, *, num_classes: int = 5, width: int = 12, spread: float = 1.0, seed: int = 0) -> Features:
    """Unit vectors around a direction for each class; directions are the same for all seeds, and so are scales."""
    centre_KD = np.random.default_rng(1000).normal(size=(num_classes, width))
    scale_D = np.geomspace(1, 0.02, width)
    random = np.random.default_rng(seed)
    label_N = random.integers(num_classes, size=num_images)
    image_ND = (centre_KD[label_N] + spread * random.normal(size=(num_images, width))) * scale_D
    return features(image_ND / np.linalg.norm(image_ND, axis=1, keepdims=True), label_N)
