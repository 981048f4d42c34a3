"""The training and the test part of a set, as probe and nearest neighbours take them.

Shapes: N images, D embedding, K classes that have training images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipx.errors import InputError, some_names
from clipx.evaluate.features import Features
from clipx.evaluate.mapped_rows import read_rows

_CHECKED_ROWS = 2**14  # read at once


@dataclass(frozen=True, kw_only=True)
class TwoParts:
    """A training and a test part whose labels count only the classes that have training images, in the set's order."""

    train_ND: NDArray[np.float32]
    train_N: NDArray[np.int64]
    test_ND: NDArray[np.float32]
    test_N: NDArray[np.int64]
    num_classes: int
    smallest: int
    """Images of the class that has fewest."""
    smallest_name: str


def two_parts(train: Features, test: Features, *, class_names: Sequence[str], option: str) -> TwoParts:
    """Both parts, checked.

    Args:
        class_names: of the set; a class without any image is left out.
        option: what asked for it, for messages.

    Raises:
        InputError: a part has no image or no classes, there is only one class, a class of the test part has no training
            image, or an embedding is not finite.
    """
    if train.label_N is None or test.label_N is None:
        raise InputError(f"{option} needs images of one class each; this set has several labels or captions")
    for part, features in (("training", train), ("test", test)):
        if len(features.image_ND) == 0:
            raise InputError(f"{option}: the {part} part has no image")
        _check_finite(features.image_ND, part=part, option=option)
    count_C = np.bincount(train.label_N, minlength=len(class_names))
    present_K = np.nonzero(count_C)[0]
    if len(present_K) < 2:
        raise InputError(
            f"{option}: all training images are of one class, {class_names[present_K[0]]!r}; at least two are needed"
        )
    if unknown := sorted(set(np.unique(test.label_N).tolist()) - set(present_K.tolist())):
        names = some_names([class_names[label] for label in unknown])
        raise InputError(f"{option}: test images of {names}, but no training image; add some, or leave the class out")
    new_C = np.full(len(class_names), -1)
    new_C[present_K] = np.arange(len(present_K))
    smallest = int(present_K[count_C[present_K].argmin()])
    return TwoParts(
        train_ND=train.image_ND,
        train_N=new_C[train.label_N],
        test_ND=test.image_ND,
        test_N=new_C[test.label_N],
        num_classes=len(present_K),
        smallest=int(count_C[smallest]),
        smallest_name=class_names[smallest],
    )


def _check_finite(image_ND: NDArray[np.float32], *, part: str, option: str) -> None:
    for first in range(0, len(image_ND), _CHECKED_ROWS):
        finite_B = np.isfinite(read_rows(image_ND, first, first + _CHECKED_ROWS)).all(axis=1)
        if not finite_B.all():
            row = first + int(finite_B.argmin())
            raise InputError(
                f"{option}: embedding {row} of the {part} part is not finite; the model or its precision is broken"
            )
