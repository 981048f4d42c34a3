"""The rows on which the export of a fitted model is compared: drawn from what its config knows, with every input absent
in some of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image

from clipx.config.fit import FitConfig
from clipx.export.parity.samples import Samples

_ROUNDS = 3
"""How often each pattern of absent inputs comes, at least."""


@dataclass(frozen=True)
class FittedRow:
    """The inputs of one row; a model may have no use for some of them."""

    picture: Image.Image | None
    text: str | None
    numbers: tuple[float, ...]
    """In the units of their columns; NaN where absent."""
    categories: tuple[int, ...]
    """Places among the classes; -1 where absent."""

    def has(self, modality: str) -> bool:
        """Whether the row has a picture, a text, or anything of the table."""
        if modality == "image":
            return self.picture is not None
        if modality == "text":
            return self.text is not None
        return not all(map(np.isnan, self.numbers)) or any(place >= 0 for place in self.categories)


@dataclass(frozen=True)
class FittedSamples:
    """What the export of a fitted model is compared on."""

    rows: Sequence[FittedRow]
    origin: str
    """Where they come from, for parity.json."""


def fitted_samples(config: FitConfig, samples: Samples) -> FittedSamples:
    """Rows of these pictures and texts, and of numbers and categories as in training; no row is without any input."""
    modalities = config.modalities
    patterns = [pattern for pattern in product((True, False), repeat=len(modalities)) if any(pattern)]
    count = max(len(samples.pictures), len(samples.texts), _ROUNDS * len(patterns))
    generator = np.random.default_rng(0)
    rows = []
    for i in range(count):
        there = dict(zip(modalities, patterns[i % len(patterns)], strict=True))
        numbers, categories = _table(config, generator, is_there=there.get("table", False), full=i < len(patterns))
        rows.append(
            FittedRow(
                picture=samples.pictures[i % len(samples.pictures)] if there.get("image") else None,
                text=samples.texts[i % len(samples.texts)] if there.get("text") else None,
                numbers=numbers,
                categories=categories,
            )
        )
    return FittedSamples(rows, samples.origin)


def _table(
    config: FitConfig, generator: np.random.Generator, *, is_there: bool, full: bool
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Numbers and categories; unless `full`, some are absent in a table that is there, but not all."""
    numbers = [float(part.mean or 0) + float(part.std or 1) * generator.normal() for part in config.numbers.values()]
    categories = [int(generator.integers(0, max(1, len(part.classes or ())))) for part in config.categories.values()]
    count = len(numbers) + len(categories)
    kept = set(range(count)) if full else {int(generator.integers(count))} if count else set()
    kept |= {i for i in range(count) if generator.random() < 0.5}
    if not is_there:
        kept = set()
    return (
        tuple(value if i in kept else float("nan") for i, value in enumerate(numbers)),
        tuple(place if len(numbers) + i in kept else -1 for i, place in enumerate(categories)),
    )
