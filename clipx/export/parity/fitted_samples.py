"""The rows on which the export of a fitted model is compared, with every input absent in some of them.

They are the first rows that its run held out, where their shards are here; else drawn from what its config knows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from typing import Any

import numpy as np
from PIL import Image

from clipx.config.fit import FitConfig
from clipx.data import fit_cells
from clipx.data.decode import UndecodableError, decode_image
from clipx.data.fit_columns import picture_members, read_record
from clipx.data.index.shard_list import expand_shards
from clipx.errors import ClipxError
from clipx.export.parity.samples import Samples
from clipx.pretrained.input_columns import input_columns
from clipx.storage.files import is_local, open_ranges
from clipx.storage.tar import CutMemberError, LargeSampleError, read_members, scan_tar
from clipx.storage.tar_headers import NotTarError

_ROUNDS = 3
"""How often each pattern of absent inputs comes among drawn rows, at least."""
_MOST = 64
"""Stored rows that are compared; further ones are not read."""


@dataclass(frozen=True)
class FittedRow:
    """The cells of one row by their columns, a picture as Pillow has it; without those that are absent."""

    config: FitConfig
    cells: Mapping[str, Any]

    @property
    def picture(self) -> Image.Image | None:
        """What stands in the column of pictures."""
        return self.cells.get(self.config.image_column or "")

    @property
    def text(self) -> str:
        """The joined columns; "" if all are absent."""
        return fit_cells.joined_text(self.cells, self.config.text_columns)

    @property
    def numbers(self) -> list[float]:
        """In the units of their columns; NaN where absent."""
        found = [fit_cells.number(self.cells.get(part.column or name)) for name, part in self.config.numbers.items()]
        return [float("nan") if value is None else value for value in found]

    @property
    def categories(self) -> list[int]:
        """Places among the classes; -1 where absent, or none of them."""
        found = []
        for name, part in self.config.categories.items():
            word, classes = fit_cells.label(self.cells.get(part.column or name)), part.classes or ()
            found.append(classes.index(word) if word in classes else -1)
        return found

    def has(self, modality: str) -> bool:
        """Whether the row has a picture, a text, or anything of the table."""
        if modality == "image":
            return self.picture is not None
        if modality == "text":
            return bool(self.text)
        return not np.isnan(self.numbers).all() or any(place >= 0 for place in self.categories)

    def without(self, modalities: Sequence[str]) -> "FittedRow":
        """The row without pictures, texts or the table."""
        config, gone = self.config, set[str]()
        if "image" in modalities:
            gone.add(config.image_column or "")
        if "text" in modalities:
            gone.update(config.text_columns)
        if "table" in modalities:
            gone.update(part.column or name for name, part in (config.numbers | config.categories).items())
        return replace(self, cells={name: cell for name, cell in self.cells.items() if name not in gone})


@dataclass(frozen=True)
class FittedSamples:
    """What the export of a fitted model is compared on."""

    rows: Sequence[FittedRow]
    origin: str
    """Where they come from, for parity.json."""


def stored_rows(config: FitConfig) -> FittedSamples | None:
    """The first rows that the run held out, some without one or two inputs; None if their shards are not here."""
    places = config.data.val_shards or ()
    if not places or not all(map(is_local, places)):
        return None
    try:
        rows = list(islice(_read(config, expand_shards(places)), _MOST))
    except (ClipxError, OSError, NotTarError, CutMemberError, LargeSampleError, UndecodableError):
        return None  # moved, or damaged meanwhile: the model is as good
    patterns = cycle(_patterns(config))
    return FittedSamples([_as(row, next(patterns)) for row in rows], "rows that were held out") if rows else None


def drawn_rows(config: FitConfig, samples: Samples) -> FittedSamples:
    """Rows of these pictures and texts, and of numbers and categories as in training."""
    patterns, generator = _patterns(config), np.random.default_rng(0)
    count = max(len(samples.pictures), len(samples.texts), _ROUNDS * len(patterns))
    rows = []
    for i in range(count):
        cells: dict[str, Any] = {}
        if config.image_column is not None:
            cells[config.image_column] = samples.pictures[i % len(samples.pictures)]
        for place, column in enumerate(config.text_columns):
            cells[column] = samples.texts[(i + place) % len(samples.texts)]
        cells |= _table(config, generator)
        rows.append(_as(FittedRow(config, cells), patterns[i % len(patterns)]))
    return FittedSamples(rows, samples.origin)


def _patterns(config: FitConfig) -> Sequence[tuple[str, ...]]:
    """Which modalities a row has: all, then every other choice of one or more."""
    modalities = config.modalities
    chosen = product((True, False), repeat=len(modalities))
    return [tuple(name for name, is_there in zip(modalities, some, strict=True) if is_there) for some in chosen][:-1]


def _as(row: FittedRow, wanted: Sequence[str]) -> FittedRow:
    """The row with these modalities alone; as it is, if it has none of them."""
    gone = [name for name in row.config.modalities if name not in wanted]
    return row.without(gone) if any(row.has(name) for name in wanted) else row


def _table(config: FitConfig, generator: np.random.Generator) -> dict[str, Any]:
    """Cells of numbers and categories, a quarter of them absent, but not all."""
    cells: dict[str, Any] = {}
    for name, number in config.numbers.items():
        cells[number.column or name] = (number.mean or 0.0) + (number.std or 1.0) * generator.normal()
    for name, category in config.categories.items():
        if category.classes:
            cells[category.column or name] = category.classes[generator.integers(len(category.classes))]
    return {name: cell for name, cell in cells.items() if generator.random() < 0.75} or cells


def _read(config: FitConfig, shards: Sequence[str]) -> Iterator[FittedRow]:
    """The rows of shards that have an input."""
    columns, pictures = input_columns(config), picture_members(config)
    for shard in shards:
        with closing(open_ranges(shard, sequential=True)) as file:
            scan = scan_tar(file)
            for place in range(len(scan.keys)):
                fields = read_members(file, scan.members(place))
                record = read_record(fields, columns)
                cells = {name: record[name] for name in columns if name in record}
                picture = next((content for name, content in fields.items() if name in pictures), None)
                if config.image_column is not None:
                    cells.pop(config.image_column, None)
                    cells |= {} if picture is None else {config.image_column: decode_image(picture)}
                row = FittedRow(config, cells)
                if any(row.has(name) for name in config.modalities):
                    yield row
