"""One pass over shards' records: what their columns hold, before anything is trained. No picture is read.

A record that cannot be read at all is a bad sample, as in training. A cell that cannot be read ends the pass with its
row and value: training would meet it in every epoch.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import CategoryInput, ClassTarget, LabelsTarget, NumberInput, NumberTarget
from clipx.data import fit_cells
from clipx.data.decode import UndecodableError
from clipx.data.fit_cells import CellError, joined_text, read_cell
from clipx.data.fit_columns import picture_members, read_record, record_members
from clipx.data.index.shard_index import ShardIndex
from clipx.data.parallel import in_processes, num_cores
from clipx.data.rows.row import Rows
from clipx.data.sample_refs import SampleName, SampleRef
from clipx.data.shards import BadSampleError, ShardReader
from clipx.errors import InputError

Counted = NumberInput | CategoryInput | ClassTarget | NumberTarget | LabelsTarget
_AT_ONCE = 1024  # samples of a remote shard that are asked for together
_ALONE = 20_000  # samples that one process counts sooner than others begin
_MEND = "correct the cell, or leave it empty if it is not known"
_MAX_COLUMNS = 10_000  # names that are kept: records may be anybody's


@dataclass
class Cells:
    """What the cells of one input or target hold."""

    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    """Of numbers, transformed as they are trained on, in the order of the rows."""
    labels: Counter[str] = field(default_factory=Counter)
    """Rows with each label."""
    present: int = 0
    """Rows in which it is not absent."""

    def add(self, other: "Cells") -> None:
        """Takes in the cells of rows that follow."""
        self.numbers.extend(other.numbers)
        self.labels.update(other.labels)
        self.present += other.present


@dataclass
class Counts:
    """What rows hold."""

    cells: dict[str, Cells]
    """By the key of the input or target in the config, e.g. `targets.price`."""
    columns: dict[str, None] = field(default_factory=dict)
    """Columns that have a cell in any row."""
    num_rows: int = 0
    num_pictures: int = 0
    num_texts: int = 0
    num_empty: int = 0
    """Rows with none of the inputs."""
    num_bad: int = 0
    """Rows whose record cannot be read."""

    def add(self, other: "Counts") -> None:
        """Takes in the counts of rows that follow."""
        for key, cells in other.cells.items():
            self.cells[key].add(cells)
        self.columns |= other.columns
        for name in ("num_rows", "num_pictures", "num_texts", "num_empty", "num_bad"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def counted_parts(config: FitConfig) -> dict[str, tuple[str, Counted]]:
    """Column and config of all inputs and targets but pictures and texts, by their key in the config."""
    parts: dict[str, tuple[str, Counted]] = {
        f"inputs.{name}": (part.column or name, part) for name, part in (config.numbers | config.categories).items()
    }
    return parts | {f"targets.{name}": (part.column or name, part) for name, part in config.targets.items()}


def count_rows(index: ShardIndex, config: FitConfig) -> Counts:
    """Counts all rows of an index, in processes if there are many.

    Raises:
        InputError: a cell that cannot be read, with its row, column and value.
        RunError: the storage failed.
    """
    count = _CountShard(index, config)
    workers = 1 if index.num_samples < _ALONE else num_cores()
    total = Counts({key: Cells() for key in counted_parts(config)})
    for counts in in_processes(count, range(len(index.paths)), workers=workers):
        total.add(counts)
    return total


def check_cells(rows: Rows, config: FitConfig) -> None:
    """Reads every cell that training will read, before shards are made: that may take hours, and a mended table is
    another one.

    Raises:
        InputError: a cell cannot be read, with its row in the table, column and value.
    """
    parts = counted_parts(config)
    for place, record in enumerate(rows.records()):
        try:
            joined_text(record, config.text_columns)
            for column, part in parts.values():
                read_cell(partial(_take, part=part, cells=Cells()), record, column)
        except CellError as error:
            raise InputError(f"row {rows.number(place)}: {error}; {_MEND}") from error


@dataclass(frozen=True)
class _CountShard:
    """What each process does."""

    index: ShardIndex
    config: FitConfig

    @cached_property
    def _parts(self) -> Mapping[str, tuple[str, Counted]]:
        return counted_parts(self.config)

    @cached_property
    def _columns(self) -> frozenset[str]:
        return frozenset({*self.config.text_columns, *(column for column, _ in self._parts.values())})

    @cached_property
    def _reader(self) -> ShardReader:
        members = record_members(self._columns)
        return ShardReader([self.index], extensions=[members], remote=self.config.data.remote)

    @cached_property
    def _picture_members(self) -> frozenset[str]:
        return picture_members(self.config)

    def __call__(self, shard: int) -> Counts:
        counts = Counts({key: Cells() for key in self._parts})
        for ref in self._refs(shard):
            counts.num_rows += 1
            name = self._reader.name(ref)
            try:
                record = read_record(self._reader.read(ref), self._columns)
            except (BadSampleError, UndecodableError):
                counts.num_bad += 1
                continue
            try:
                self._count(record, name, counts)
            except CellError as error:
                raise InputError(f"row {name.key} of {name.shard}: {error}; {_MEND}") from error
        return counts

    def _refs(self, shard: int) -> Iterator[SampleRef]:
        """The samples of a shard, of which those of a remote one are fetched many at a time."""
        count = int(self.index.counts[shard])
        for first in range(0, count, _AT_ONCE):
            places = range(first, min(first + _AT_ONCE, count))
            refs = [SampleRef(0, shard, place, epoch=0, sample_id=place) for place in places]
            self._reader.expect(refs, until=first)
            yield from refs
            self._reader.forget(first + 1)

    def _count(self, record: Mapping[str, object], name: SampleName, counts: Counts) -> None:
        """Adds a row.

        Raises:
            CellError: a cell of it cannot be read.
        """
        if len(counts.columns) < _MAX_COLUMNS:
            counts.columns |= dict.fromkeys(record)
        has_picture = self.config.image_column is not None and not self._picture_members.isdisjoint(name.members)
        has_text = bool(joined_text(record, self.config.text_columns))
        has_input = has_picture or has_text
        for key, (column, part) in self._parts.items():
            is_present = read_cell(partial(_take, part=part, cells=counts.cells[key]), record, column)
            has_input |= is_present and key.startswith("inputs.")
        counts.num_pictures += has_picture
        counts.num_texts += has_text
        counts.num_empty += not has_input


def _take(cell: object, *, part: Counted, cells: Cells) -> bool:
    """Adds a cell to those of its column; whether it is present.

    Raises:
        CellError: it cannot be read.
    """
    found: Sequence[str] | None
    match part:
        case NumberInput() | NumberTarget():
            number = fit_cells.number(cell)
            if number is None:
                return False
            cells.numbers.append(fit_cells.transformed(number, getattr(part, "transform", "none")))
            found = ()
        case CategoryInput() | ClassTarget():
            name = fit_cells.label(cell)
            found = None if name is None else [name]
        case LabelsTarget():
            found = fit_cells.labels(cell, separator=part.separator)
    if found is None:
        return False
    cells.labels.update(found)
    cells.present += 1
    return True
