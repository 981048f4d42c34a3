"""From a sample's record to what a fit run trains on: joined text, scaled numbers, classes, targets, and presence.

Everything that a column needs (classes, means, scales) stands in the resolved config, so reading is the same in
training, evaluation and prediction. Axes: B samples (one text each), M modalities, K numbers, C categories, O columns
of all targets side by side.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from clipx import counter_random
from clipx.config.fit import (
    CategoryInput,
    ClassTarget,
    FitConfig,
    LabelsTarget,
    NumberInput,
    NumberTarget,
    TargetConfig,
    TextInput,
)
from clipx.counter_random import Stream
from clipx.data import fit_cells
from clipx.data.captions import Captions, alternatives, decode_record, decode_text
from clipx.data.columns import ColumnSpec, RawSample
from clipx.data.decode import UndecodableError
from clipx.data.fit_cells import CellError
from clipx.data.sample_refs import SampleRef

RECORD = "json"
"""The member that holds the record."""
_TEXT_MEMBERS = ("txt", "cls")  # of shards for pretraining and with labels: columns, too, where the record lacks them

T = TypeVar("T")


def record_members(columns: Collection[str]) -> frozenset[str]:
    """The members of a sample that hold the values of columns."""
    return frozenset({RECORD, *(name for name in _TEXT_MEMBERS if name in columns)})


def read_record(members: Mapping[str, bytes], columns: Collection[str]) -> dict[str, object]:
    """A sample's values by column, as JSON has them; empty if it has no record.

    Raises:
        UndecodableError: the record is no JSON object, or a text is not UTF-8.
    """
    record = decode_record(members, RECORD) if RECORD in members else {}
    for name in record_members(columns) - {RECORD}:
        if name in members and name not in record:
            record[name] = decode_text(members, name)
    return record


def joined_text(record: Mapping[str, object], columns: Sequence[str]) -> str:
    """The texts of columns in their order, joined by commas; "" if all are absent.

    Raises:
        CellError: a cell is no text.
    """
    return ", ".join(part for name in columns if (part := fit_cells.text(record.get(name))))


class JoinedText:
    """Reads the text input of samples, in the form of `clipx.data.captions.CaptionReader`.

    Args:
        columns: of the text input, in the order in which they are joined; none: every text is "".
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = tuple(columns)
        self.extensions = record_members(self._columns)
        """The members of a sample that hold the texts."""

    def read(self, members: Mapping[str, bytes], *, epoch: int, sample_id: int) -> Captions:
        """The text of a sample, the same in every epoch; "" if it has none.

        Raises:
            UndecodableError: it cannot be read.
        """
        if not self._columns:
            return Captions(("",), None)
        record = read_record(members, self._columns)
        return Captions((_cell(lambda _: joined_text(record, self._columns), record, self._columns[0]),), None)


@dataclass(frozen=True)
class _Number:
    column: str
    mean: float
    std: float

    def read(self, record: Mapping[str, object]) -> float:
        """The scaled number, NaN if absent."""
        value = _cell(fit_cells.number, record, self.column)
        return np.nan if value is None else (value - self.mean) / self.std


@dataclass(frozen=True)
class _Category:
    column: str
    places: Mapping[str, int]

    def read(self, record: Mapping[str, object]) -> int:
        """The place of the class, -1 if it is absent or none of the classes."""
        name = _cell(fit_cells.label, record, self.column)
        return -1 if name is None else self.places.get(name, -1)


@dataclass(frozen=True)
class _Target:
    column: str
    config: TargetConfig
    columns: slice
    places: Mapping[str, int]

    def read(self, record: Mapping[str, object], *, out: np.ndarray) -> None:
        """Writes the target's columns, which are NaN, unless it is absent or of a class that is not known."""
        return _cell(lambda value: self._write(value, out[self.columns]), record, self.column)

    def _write(self, value: object, out: np.ndarray) -> None:
        match self.config:
            case ClassTarget():
                name = fit_cells.label(value)
                out[0] = np.nan if name is None else self.places.get(name, np.nan)
            case NumberTarget(mean=mean, std=std, transform=transform):
                assert mean is not None and std is not None
                number = fit_cells.number(value)
                out[0] = np.nan if number is None else (fit_cells.transformed(number, transform) - mean) / std
            case LabelsTarget(separator=separator):
                names = fit_cells.labels(value, separator=separator)
                if names is not None:
                    out[:] = 0
                    out[[self.places[name] for name in names if name in self.places]] = 1


class FitColumns:
    """Reads the columns of a fit run that are no picture and no text; a `clipx.data.columns.ColumnReader`.

    Args:
        config: resolved.
        training: whether inputs are drawn away, as `absent.probability` says.
        targets: whether the column of targets is read; what is predicted has none.
    """

    def __init__(self, config: FitConfig, *, training: bool, targets: bool = True) -> None:
        assert config.is_resolved, "facts are found before anything is read"
        inputs, self._modalities = config.inputs, config.modalities
        self._has_text = any(isinstance(part, TextInput) for part in inputs.values())
        self._numbers = [
            _Number(part.column or name, float(part.mean or 0), float(part.std or 1))
            for name, part in inputs.items()
            if isinstance(part, NumberInput)
        ]
        self._categories = [
            _Category(part.column or name, _places(part.classes))
            for name, part in inputs.items()
            if isinstance(part, CategoryInput)
        ]
        self._targets = [
            _Target(part.column or head.name, part, head.columns, _places(getattr(part, "classes", None)))
            for head in config.heads
            for part in [config.targets[head.name]]
        ]
        self._num_outputs = max((head.columns.stop for head in config.heads), default=0)
        self._reads_targets = targets
        self._image_extensions = [extension for extension, _ in alternatives(config.data.image_key)]
        self._probability = config.absent.probability if training else 0.0
        self._seed = config.seed
        self._names = {part.column for part in (*self._numbers, *self._categories)}
        if targets:
            self._names |= {target.column for target in self._targets}

    @property
    def columns(self) -> Mapping[str, ColumnSpec]:
        """See `ColumnReader`."""
        columns = {"presence_BM": ColumnSpec(np.dtype(np.float32), (len(self._modalities),))}
        if self._numbers:
            columns["numbers_BK"] = ColumnSpec(np.dtype(np.float32), (len(self._numbers),))
        if self._categories:
            columns["categories_BC"] = ColumnSpec(np.dtype(np.int64), (len(self._categories),))
        if self._reads_targets:
            columns["targets_BO"] = ColumnSpec(np.dtype(np.float32), (self._num_outputs,))
        return columns

    @property
    def extensions(self) -> frozenset[str]:
        """See `ColumnReader`; whether there is a picture is asked without reading it."""
        return record_members(self._names)

    def read(self, sample: RawSample) -> Mapping[str, np.ndarray]:
        """The columns of one sample.

        Raises:
            UndecodableError: a cell cannot be read, or none of the inputs is there.
        """
        record = read_record(sample.members, self._names)
        values: dict[str, np.ndarray] = {}
        if self._numbers:
            values["numbers_BK"] = np.array([[part.read(record) for part in self._numbers]], np.float32)
        if self._categories:
            values["categories_BC"] = np.array([[part.read(record) for part in self._categories]], np.int64)
        values["presence_BM"] = self._presence(sample, values)
        if self._reads_targets:
            values["targets_BO"] = targets_BO = np.full((1, self._num_outputs), np.nan, np.float32)
            for target in self._targets:
                target.read(record, out=targets_BO[0])
        return values

    def _presence(self, sample: RawSample, values: Mapping[str, np.ndarray]) -> np.ndarray:
        there = {
            "image": self._has_picture(sample),
            "text": bool(sample.texts and sample.texts[0]),
            "table": bool(
                ("numbers_BK" in values and not np.isnan(values["numbers_BK"]).all())
                or ("categories_BC" in values and (values["categories_BC"] >= 0).any())
            ),
        }
        present = {name: there[name] for name in self._modalities}
        if not any(present.values()):
            raise UndecodableError(f"none of its inputs is there ({', '.join(self._modalities)})")
        if self._probability and sum(present.values()) > 1:
            present[self._drawn_away(sample.ref)] = False
        return np.array([[present[name] for name in self._modalities]], np.float32)

    def _has_picture(self, sample: RawSample) -> bool:
        if "image" not in self._modalities:
            return False
        members = sample.members
        return any(extension in members for extension in self._image_extensions) or any(
            extension in sample.name().members for extension in self._image_extensions
        )

    def _drawn_away(self, ref: SampleRef) -> str:
        """The modality that a sample of two or more does without in an epoch, "" for none."""
        drawn = counter_random.key(self._seed, Stream.ABSENT, ref.epoch, ref.sample_id) * 2.0**-63
        return "image" if drawn < self._probability else "text" if drawn < 2 * self._probability else ""


def _places(classes: Sequence[str] | None) -> Mapping[str, int]:
    return {name: place for place, name in enumerate(classes or ())}


def _cell(read: Callable[[object], T], record: Mapping[str, object], column: str) -> T:
    """What `read` makes of a cell.

    Raises:
        UndecodableError: it cannot be read.
    """
    try:
        return read(record.get(column))
    except CellError as error:
        raise UndecodableError(f"column {column!r}: {error}") from error
