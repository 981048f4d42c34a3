"""From a sample's record to what a fit run trains on: joined text, scaled numbers, classes, targets, and presence.

Everything that a column needs (classes, means, scales) stands in the resolved config, so reading is the same in
training, evaluation and prediction. Axes: B samples (one text each), M modalities, K numbers, C categories, O columns
of all targets side by side.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import ClassTarget, Head, LabelsTarget, NumberTarget
from clipx.data import fit_cells
from clipx.data.captions import Captions, alternatives, decode_record, decode_text
from clipx.data.columns import ColumnSpec, RawSample
from clipx.data.decode import UndecodableError
from clipx.data.fit_cells import CellError, joined_text, read_cell
from clipx.data.modality_dropout import ModalityDropout
from clipx.errors import some_names

T = TypeVar("T")

_RECORD = "json"
_TEXT_MEMBERS = ("txt", "cls")  # of shards for pretraining and with labels: columns, too, where the record lacks them


def record_members(columns: Collection[str]) -> frozenset[str]:
    """The members of a sample that hold the values of columns."""
    return frozenset({_RECORD, *(name for name in _TEXT_MEMBERS if name in columns)})


def picture_members(config: FitConfig) -> frozenset[str]:
    """The members of a sample of which one is its picture, if it has one."""
    return frozenset(extension for extension, _ in alternatives(config.data.source(()).image_key))


def read_record(members: Mapping[str, bytes], columns: Collection[str]) -> dict[str, object]:
    """A sample's values by column, as JSON has them; empty if it has no record.

    Raises:
        UndecodableError: the record is no JSON object, or a text is not UTF-8.
    """
    record = decode_record(members, _RECORD) if _RECORD in members else {}
    for name in _TEXT_MEMBERS:
        if name in columns and name in members and name not in record:
            record[name] = decode_text(members, name)
    return record


class JoinedText:
    """Reads the text input of samples, in the form of `clipx.data.captions.CaptionReader`.

    Args:
        columns: of the text input, in the order in which they are joined; none: every text is "".
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = tuple(columns)

    @property
    def extensions(self) -> frozenset[str]:
        """The members of a sample that hold the texts."""
        return record_members(self._columns) if self._columns else frozenset()

    def read(self, members: Mapping[str, bytes], *, epoch: int, sample_id: int) -> Captions:
        """The text of a sample, the same in every epoch; "" if it has none.

        Raises:
            UndecodableError: it cannot be read.
        """
        if not self._columns:
            return Captions(("",), None)
        try:
            return Captions((joined_text(read_record(members, self._columns), self._columns),), None)
        except CellError as error:
            raise UndecodableError(str(error)) from error


@dataclass(frozen=True)
class _Number:
    """An input that is a number."""

    column: str
    mean: float
    std: float

    def read(self, record: Mapping[str, object]) -> float:
        """The scaled number, NaN if absent."""
        value = read_cell(self._scaled, record, self.column)
        return np.nan if value is None else value

    def _scaled(self, cell: object) -> float | None:
        value = fit_cells.number(cell)
        return None if value is None else fit_cells.scaled(value, mean=self.mean, std=self.std)


@dataclass(frozen=True)
class _Category:
    """An input that is a category."""

    column: str
    places: Mapping[str, int]

    def read(self, record: Mapping[str, object]) -> int:
        """The place of the class, -1 if it is absent or none of the classes."""
        name = read_cell(fit_cells.label, record, self.column)
        return -1 if name is None else self.places.get(name, -1)


class _Target:
    """A target, one column of several for labels."""

    def __init__(self, head: Head) -> None:
        self.column = head.target.column or head.name
        self.columns = head.columns
        self._target = head.target
        self._places = {} if isinstance(head.target, NumberTarget) else _places(_known(head.target.classes))

    def read(self, record: Mapping[str, object], out: np.ndarray) -> None:
        """Writes the target into its columns of a row that is NaN; one that is absent or of no known class stays so."""
        values = read_cell(self._values, record, self.column)
        if values is not None:
            out[self.columns] = values

    def _values(self, cell: object) -> float | np.ndarray | None:
        match self._target:
            case ClassTarget():
                name = fit_cells.label(cell)
                return None if name is None else self._places.get(name)
            case NumberTarget() as target:
                number = fit_cells.number(cell)
                if number is None:
                    return None
                number = fit_cells.transformed(number, target.transform)
                return fit_cells.scaled(number, mean=_known(target.mean), std=_known(target.std))
            case LabelsTarget(separator=separator):
                names = fit_cells.labels(cell, separator=separator)
                if names is None:
                    return None
                found = np.zeros(len(self._places), np.float32)
                found[[self._places[name] for name in names if name in self._places]] = 1
                return found


class FitTargets:
    """Reads the targets of samples alone; a `clipx.data.columns.ColumnReader`.

    Args:
        config: resolved.
    """

    def __init__(self, config: FitConfig) -> None:
        self._targets = [_Target(head) for head in config.heads]
        self._size = max(target.columns.stop for target in self._targets)
        self.names = frozenset(target.column for target in self._targets)
        """Their columns of the table."""

    @property
    def columns(self) -> Mapping[str, ColumnSpec]:
        """See `ColumnReader`."""
        return {"targets_BO": ColumnSpec(np.dtype(np.float32), (self._size,))}

    @property
    def extensions(self) -> frozenset[str]:
        """See `ColumnReader`."""
        return record_members(self.names)

    def read(self, sample: RawSample) -> Mapping[str, np.ndarray]:
        """The targets of one sample.

        Raises:
            UndecodableError: a cell cannot be read.
        """
        try:
            return {"targets_BO": self.of(read_record(sample.members, self.names))}
        except CellError as error:
            raise UndecodableError(str(error)) from error

    def of(self, record: Mapping[str, object]) -> np.ndarray:
        """float32 (1, O): the targets in a record, NaN where absent.

        Raises:
            CellError: a cell cannot be read.
        """
        targets_BO = np.full((1, self._size), np.nan, np.float32)
        for target in self._targets:
            target.read(record, targets_BO[0])
        return targets_BO


class FitColumns:
    """Reads the columns of a fit run that are no picture and no text; a `clipx.data.columns.ColumnReader`.

    Args:
        config: resolved.
        training: whether inputs are hidden, as `absent.probability` says.
        targets: whether the column of targets is read; what is predicted has none.
    """

    def __init__(self, config: FitConfig, *, training: bool, targets: bool = True) -> None:
        self._modalities = config.modalities
        self._inputs = some_names(config.inputs)
        self._numbers = [
            _Number(number.column or name, _known(number.mean), _known(number.std))
            for name, number in config.numbers.items()
        ]
        self._categories = [
            _Category(category.column or name, _places(_known(category.classes)))
            for name, category in config.categories.items()
        ]
        self._targets = FitTargets(config) if targets else None
        self._picture_members = picture_members(config)
        probability = config.absent.probability if training else 0.0
        self._dropout = ModalityDropout(seed=config.seed, modalities=self._modalities, probability=probability)
        inputs = [part.column for part in self._numbers] + [part.column for part in self._categories]
        self._names = frozenset(inputs).union(() if self._targets is None else self._targets.names)

    @property
    def columns(self) -> Mapping[str, ColumnSpec]:
        """See `ColumnReader`."""
        columns: dict[str, ColumnSpec] = {"presence_BM": ColumnSpec(np.dtype(np.float32), (len(self._modalities),))}
        if self._numbers:
            columns["numbers_BK"] = ColumnSpec(np.dtype(np.float32), (len(self._numbers),))
        if self._categories:
            columns["categories_BC"] = ColumnSpec(np.dtype(np.int64), (len(self._categories),))
        return columns if self._targets is None else {**columns, **self._targets.columns}

    @property
    def extensions(self) -> frozenset[str]:
        """See `ColumnReader`; whether there is a picture is known without reading it."""
        return record_members(self._names)

    def read(self, sample: RawSample) -> Mapping[str, np.ndarray]:
        """The columns of one sample.

        Raises:
            UndecodableError: a cell cannot be read, or none of the inputs is there.
        """
        record = read_record(sample.members, self._names)
        values: dict[str, np.ndarray] = {}
        try:
            if self._numbers:
                values["numbers_BK"] = np.array([[part.read(record) for part in self._numbers]], np.float32)
            if self._categories:
                values["categories_BC"] = np.array([[part.read(record) for part in self._categories]], np.int64)
            if self._targets is not None:
                values["targets_BO"] = self._targets.of(record)
        except CellError as error:
            raise UndecodableError(str(error)) from error
        values["presence_BM"] = self._presence(sample, values)
        return values

    def _presence(self, sample: RawSample, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 (1, M): which modalities the sample has and may use in this epoch."""
        present = [self._has(modality, sample, values) for modality in self._modalities]
        if not any(present):
            raise UndecodableError(f"none of the inputs is there ({self._inputs})")
        ref = sample.ref
        return self._dropout(
            np.array([present], np.float32), epoch_B=np.array([ref.epoch]), sample_id_B=np.array([ref.sample_id])
        )

    def _has(self, modality: str, sample: RawSample, values: Mapping[str, np.ndarray]) -> bool:
        if modality == "text":
            return any(sample.texts)
        if modality == "image":
            is_read = not self._picture_members.isdisjoint(sample.members)
            return is_read or not self._picture_members.isdisjoint(sample.name().members)
        has_number = "numbers_BK" in values and not np.isnan(values["numbers_BK"]).all()
        return has_number or ("categories_BC" in values and bool((values["categories_BC"] >= 0).any()))


def _known(fact: T | None) -> T:
    """What was found in the training rows before anything is read."""
    assert fact is not None, "the config is not resolved"
    return fact


def _places(classes: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(classes)}
