"""What the classes of many pictures are: a few numbers for each picture, whatever the number of classes.

Shapes: N pictures, K classes that are kept of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clipx.use.reading import LeftOut


class Label(NamedTuple):
    """A class of a picture."""

    name: str
    probability: float
    cosine: float


class Picture(NamedTuple):
    """A picture with its classes, the most probable first; perhaps none."""

    row: int
    """Its number among the inputs, those left out included."""
    key: str
    name: str
    """What a person finds it by."""
    labels: list[Label]


@dataclass(frozen=True, kw_only=True)
class Classified:
    """All pictures of some inputs with their classes."""

    class_names: tuple[str, ...]
    rows: list[int]
    """Of each picture, its number among the inputs; ascending."""
    keys: list[str]
    names: list[str]
    index_NK: np.ndarray
    """int32: places in `class_names`, the most probable first."""
    probability_NK: np.ndarray
    """float32."""
    cosine_NK: np.ndarray
    """float32."""
    threshold: float
    """Least probability of a class that counts."""
    several: bool
    """Whether each class was a question of its own, so that a picture may have several."""
    left_out: list[LeftOut]
    """Inputs that are no picture, each with its reason."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Picture:
        numbers = zip(self.index_NK[place], self.probability_NK[place], self.cosine_NK[place], strict=True)
        labels = [
            Label(self.class_names[index], float(probability), float(cosine))
            for index, probability, cosine in numbers
            if probability >= self.threshold
        ]
        return Picture(self.rows[place], self.keys[place], self.names[place], labels)

    def __iter__(self) -> Iterator[Picture]:
        return map(self.__getitem__, range(len(self)))

    def counts(self) -> list[tuple[str, int, float]]:
        """The classes that pictures have, the most frequent first: name, pictures, mean of their probability.

        With several classes for a picture each of them counts, else its most probable one.
        """
        counted_NK = self.probability_NK >= self.threshold
        if not self.several:
            counted_NK = counted_NK.copy()
            counted_NK[:, 1:] = False
        index_P = self.index_NK[counted_NK]
        count_C = np.bincount(index_P, minlength=len(self.class_names))
        sum_C = np.bincount(index_P, weights=self.probability_NK[counted_NK], minlength=len(self.class_names))
        order = np.argsort(-count_C, kind="stable")
        return [
            (self.class_names[place], int(count_C[place]), float(sum_C[place] / count_C[place]))
            for place in order[: np.count_nonzero(count_C)]
        ]

    def num_without(self) -> int:
        """Pictures without a class that counts."""
        return int((self.probability_NK[:, 0] < self.threshold).sum())

    def reasons(self) -> dict[str, int]:
        """How many inputs were left out, by their reason, the most frequent first."""
        found: dict[str, int] = {}
        for row in self.left_out:
            found[row.reason] = found.get(row.reason, 0) + 1
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def joined(parts: Sequence[Classified]) -> Classified:
    """The pictures of all parts, in the order of their rows."""
    first = parts[0]
    rows = [row for part in parts for row in part.rows]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    keys = [key for part in parts for key in part.keys]
    names = [name for part in parts for name in part.names]
    return Classified(
        class_names=first.class_names,
        rows=[rows[i] for i in order],
        keys=[keys[i] for i in order],
        names=[names[i] for i in order],
        index_NK=np.concatenate([part.index_NK for part in parts])[order],
        probability_NK=np.concatenate([part.probability_NK for part in parts])[order],
        cosine_NK=np.concatenate([part.cosine_NK for part in parts])[order],
        threshold=first.threshold,
        several=first.several,
        left_out=sorted((row for part in parts for row in part.left_out), key=lambda row: row.row),
    )
