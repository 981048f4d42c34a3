"""Predictions as a file: CSV or parquet, a line for each row of the table, written block by block.

The first column is the row's number, or its key. Then come, for each target, its value under its name (a class, a
number in its units, labels) and the probability of a class under NAME_probability; with all probabilities, one column
for each class or label, NAME_probability_CLASS. `present` has the names of the inputs that the row had, `problem` says
why it has no prediction. Columns move out of the way of a target that has their name with an underscore. In CSV labels
stand with their separator between them; if it is in one of them, as a JSON list, which is read as labels, too.

Shapes: B good rows of a block, N all its rows, K classes or labels.
"""

import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, Self

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import LabelsTarget, NumberTarget
from clipx.errors import InputError
from clipx.pretrained.fitted import PredictedBlock
from clipx.pretrained.predictions import (
    LIKELY,
    ClassPrediction,
    LabelsPrediction,
    NumberPrediction,
    free_name,
    predictions,
)
from clipx.printable import redact
from clipx.use.key_table import as_stored
from clipx.use.own_predictions import LAST, MARK, WHAT, import_arrow, is_parquet, require_own

_GROUP_ROWS = 16_384  # rows of a row group, at least
_BETWEEN = ";"

_DIGITS = 7  # of a float32
_MOST_DIGITS = 17  # of a float64

Kind = Literal["text", "share", "number", "whole", "texts"]


class Column(NamedTuple):
    """A column of the file."""

    name: str
    kind: Kind
    separator: str = _BETWEEN
    """Of texts, in CSV."""
    digits: int = _DIGITS
    """Of numbers, in CSV."""


class PredictionTable:
    """The columns of a model's predictions, and their cells.

    Args:
        config: of the model, resolved.
        key: the column that names rows; None: their numbers do.
        probabilities: whether those of all classes and labels are columns.
    """

    def __init__(self, config: FitConfig, *, key: str | None, probabilities: bool) -> None:
        self._config, self._key, self._all = config, key, probabilities
        taken = set(config.targets)
        values: list[Column] = []
        for column in self._values_of_targets():
            is_value = column.kind != "share"  # of a target, under its own name
            values.append(column if is_value else column._replace(name=free_name(column.name, taken)))
            taken.add(values[-1].name)
        first = Column(free_name(key or "row", taken), "whole" if key is None else "text")
        taken.add(first.name)
        present, problem = (free_name(name, taken) for name in LAST)
        self.columns = [first, *values, Column(present, "texts"), Column(problem, "text")]

    def _values_of_targets(self) -> Iterator[Column]:
        for head in self._config.heads:
            target = head.target
            match head.kind:
                case "class":
                    yield Column(head.name, "text")
                    yield Column(f"{head.name}_probability", "share")
                case "number":
                    assert isinstance(target, NumberTarget)
                    yield Column(head.name, "number", digits=_digits(target))
                case "labels":
                    assert isinstance(target, LabelsTarget)
                    yield Column(head.name, "texts", target.separator)
            if self._all and head.kind != "number":
                for name in getattr(target, "classes", None) or ():
                    yield Column(f"{head.name}_probability_{name}", "share")

    def cells(self, block: PredictedBlock, keys: Sequence[str]) -> list[list[Any]]:
        """The cells of a block's rows, column by column; None where there is nothing."""
        place = {row: number for number, row in enumerate(block.good)}
        places = [place.get(row) for row in block.rows]

        def spread(values_B: Sequence[Any]) -> list[Any]:
            return [None if at is None else values_B[at] for at in places]

        inputs = list(self._config.inputs)
        there = [
            [name for name, is_there in zip(inputs, row, strict=True) if is_there] for row in block.there_BP.tolist()
        ]
        return [
            list(block.rows) if self._key is None else [as_stored(key) or None for key in keys],
            *map(spread, self._of_targets(block)),
            spread(there),
            [self._problem(block, row) for row in block.rows],
        ]

    @staticmethod
    def _problem(block: PredictedBlock, row: int) -> str | None:
        problem = block.problems.get(row)
        return None if problem is None else as_stored(redact(problem))

    def _of_targets(self, block: PredictedBlock) -> Iterator[list[Any]]:
        """The values of the B good rows, in the order of the columns."""
        for prediction in predictions(self._config.heads, block.raw_BO).values():
            match prediction:
                case ClassPrediction(names, probability_BK):
                    yield [names[index] for index in prediction.best().tolist()]
                    yield probability_BK.amax(1).tolist()
                case NumberPrediction(value_B):
                    yield value_B.tolist()
                    continue
                case LabelsPrediction(names, probability_BK):
                    likely = (probability_BK >= LIKELY).tolist()
                    yield [list(compress(names, row)) for row in likely]
            if self._all:
                yield from probability_BK.T.tolist()


class PredictionFile:
    """A file that takes the place of `path` when it is complete.

    Args:
        path: .csv or .parquet.
        table: its columns.

    Raises:
        InputError: it has another ending, is somebody else's file, cannot be written, or pyarrow is missing.
    """

    def __init__(self, path: Path, table: PredictionTable) -> None:
        require_own(path)
        self._path, self._table = path, table
        self._draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = (_Parquet if is_parquet(path) else _Csv)(self._draft, table.columns)
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def write(self, block: PredictedBlock, keys: Sequence[str]) -> None:
        """Writes the rows of a block.

        Raises:
            InputError: the disk does not take them.
        """
        try:
            self._writer.write(self._table.cells(block, keys))
        except OSError as error:
            raise self._unwritable(error) from error

    def complete(self) -> None:
        """Puts the file in its place.

        Raises:
            InputError: the disk does not take it.
        """
        try:
            self._writer.close()
            os.replace(self._draft, self._path)
        except OSError as error:
            raise self._unwritable(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._writer.close()
        self._draft.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"--out {self._path}: cannot be written: {error.strerror or error}")


def _digits(target: NumberTarget) -> int:
    """As many as tell numbers apart that a float32 does when they are scaled: of dates in seconds more than of prices.

    The step from one number to the next is that share of a standard deviation; with a logarithm, that deviation is a
    share of the number itself.
    """
    assert target.mean is not None, "the config is not resolved"
    assert target.std is not None, "the config is not resolved"
    size = 1.0 if target.transform == "log" else abs(target.mean)
    return min(_MOST_DIGITS, _DIGITS + max(0, math.floor(math.log10(max(size / target.std, 1)))))


class _Csv:
    """Cells as text."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._file: IO[str] = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow([column.name for column in columns])

    def write(self, cells: Sequence[Sequence[Any]]) -> None:
        texts = [[_text(cell, column) for cell in values] for column, values in zip(self._columns, cells, strict=True)]
        self._rows.writerows(zip(*texts, strict=True))

    def close(self) -> None:
        self._file.close()


def _text(cell: Any, column: Column) -> str:
    if cell is None:
        return ""
    match column.kind:
        case "number" | "share":
            return f"{cell:.{column.digits}g}"
        case "texts":
            return _joined(cell, column.separator)
        case _:
            return str(cell)


def _joined(texts: Sequence[str], separator: str) -> str:
    if any(separator in text for text in texts) or (texts and texts[0].startswith("[")):
        return json.dumps(texts, ensure_ascii=False)
    return separator.join(texts)


class _Parquet:
    """Row groups of whole blocks; equal bytes for equal predictions and one version of pyarrow."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._arrow = import_arrow("pyarrow")
        types = {
            "text": self._arrow.string(),
            "share": self._arrow.float32(),
            "number": self._arrow.float64(),
            "whole": self._arrow.int64(),
            "texts": self._arrow.list_(self._arrow.string()),
        }
        fields = [self._arrow.field(column.name, types[column.kind]) for column in columns]
        self._schema = self._arrow.schema(fields, metadata={MARK: WHAT.encode()})
        self._writer = import_arrow("pyarrow.parquet").ParquetWriter(path, self._schema, compression="zstd")
        self._cells: list[list[Any]] = [[] for _ in columns]

    def write(self, cells: Sequence[Sequence[Any]]) -> None:
        self._cells = [[*kept, *values] for kept, values in zip(self._cells, cells, strict=True)]
        if len(self._cells[0]) >= _GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        if self._writer.is_open:
            if self._cells[0]:
                self._flush()
            self._writer.close()

    def _flush(self) -> None:
        arrays = [
            self._arrow.array(values, field.type) for values, field in zip(self._cells, self._schema, strict=True)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._cells = [[] for _ in self._cells]
