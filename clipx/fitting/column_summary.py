"""What a sample of a table's cells says of each column: numbers, words or lists, how many different ones."""

import math
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipx.data.fit_cells import CellError, is_absent, label, labels, number
from clipx.data.rows.cells import label_or_labels
from clipx.data.rows.row import LeftOutError, Rows, fields_in
from clipx.errors import InputError

MOST_ROWS = 100_000
"""Of a larger table as many rows are looked at, from all of it."""
SEPARATORS = (";", "|")
"""Between labels in one cell, the usual one first."""

_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass
class ColumnSummary:
    """The cells of a column that are not empty."""

    numbers: list[float] = field(default_factory=list)
    """Those that are numbers, or text that is one."""
    values: Counter[str] = field(default_factory=Counter)
    """Different cells that are no lists, as text, and how often each comes."""
    labels: Counter[str] = field(default_factory=Counter)
    """Different members of cells that are lists."""
    num_present: int = 0
    num_lists: int = 0
    no_number: tuple[int, str] | None = None
    """The first cell that is no number: its row, and what is wrong with it."""

    def add(self, cell: object, row: int) -> None:
        """Takes in a cell that is not empty; one that makes no sense is there, and is nothing more."""
        self.num_present += 1
        try:
            if (found := number(cell)) is not None:
                self.numbers.append(found)
        except CellError as error:
            self.no_number = self.no_number or (row, str(error))
        try:
            if isinstance(label_or_labels(cell) if isinstance(cell, str) else cell, list):
                self.labels.update(labels(cell, separator=SEPARATORS[0]) or ())
                self.num_lists += 1
                return
            self.values[label(cell) or ""] += 1
        except CellError:
            return

    @property
    def is_numeric(self) -> bool:
        """Whether nearly all cells are numbers; one that is text is then somebody's slip."""
        return len(self.numbers) >= 0.9 * self.num_present > 0

    @property
    def is_whole(self) -> bool:
        """Whether all numbers are whole."""
        return all(number.is_integer() for number in self.numbers)

    @property
    def has_pictures(self) -> bool:
        """Whether most cells name pictures."""
        named = sum(n for value, n in self.values.items() if os.path.splitext(value)[1].lower() in _PICTURES)
        return 2 * named > self.num_present

    def separator(self) -> str | None:
        """What stands between labels in one cell: parts of cells come again more often than whole cells do."""
        for separator in SEPARATORS:
            cut = {value: value.split(separator) for value in self.values if separator in value}
            num_cut = sum(self.values[value] for value in cut)
            parts = {part.strip() for value in self.values for part in cut.get(value, [value])}
            if num_cut * 20 >= self.num_present and len(parts) < len(self.values) and "" not in parts:
                return separator
        return None

    def is_skewed(self) -> bool:
        """Whether the logarithms of the numbers lie more evenly than the numbers do: all above 0, with a long tail."""
        numbers = sorted(self.numbers)
        if len(numbers) < 2 or numbers[0] <= 0:
            return False
        logs = [math.log(number) for number in numbers]
        low, high = numbers[len(numbers) // 100], numbers[-1 - len(numbers) // 100]
        return high > 100 * low or _skewness(numbers) > max(1.0, 2 * abs(_skewness(logs)))


def summarised(rows: Rows, names: Sequence[str], *, origin: str) -> dict[str, ColumnSummary]:
    """Summaries of some columns of a table, of at most `MOST_ROWS` rows that lie evenly in it.

    Raises:
        InputError: the table has no such column, or no cell in it.
    """
    total = len(rows)
    wanted = range(total) if total <= MOST_ROWS else [row * total // MOST_ROWS for row in range(MOST_ROWS)]
    summaries = {name: ColumnSummary() for name in names}
    # all in one pass, which passes over pictures
    records = rows.records() if total <= MOST_ROWS else (_record(rows, row) for row in wanted)
    for row, record in zip(wanted, records, strict=True):
        for name, column in summaries.items():
            if not is_absent(cell := record.get(name)):
                column.add(cell, rows.number(row))
    if empty := [name for name, column in summaries.items() if not column.num_present]:
        raise InputError(f"{origin}: column {empty[0]!r} is empty in all of {len(wanted):,} rows; name another")
    return summaries


def _record(rows: Rows, row: int) -> Mapping[str, object]:
    """The cells of a row by column, as training reads them; none of a row that cannot be read, which it names."""
    try:
        return fields_in(rows.read(row))
    except LeftOutError:
        return {}


def _skewness(numbers: Sequence[float]) -> float:
    """The third standardised moment; 0 of numbers that are all equal."""
    mean, std = statistics.fmean(numbers), statistics.pstdev(numbers)
    return statistics.fmean(((number - mean) / std) ** 3 for number in numbers) if std else 0.0
