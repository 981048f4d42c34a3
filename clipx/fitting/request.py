"""What a person asks of `clipx fit`, and the table that it is about."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import ALL_COLUMNS, Rows
from clipx.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What a person said of a fit run."""

    table: str
    targets: Sequence[str]
    model: str
    """The encoder's."""
    out: str
    image: str | None = None
    text: Sequence[str] = ()
    """Columns of one text."""
    numbers: Sequence[str] = ()
    categories: Sequence[str] = ()
    inputs: Sequence[str] = ()
    """Columns whose kind is to be guessed: numbers or categories."""
    val: str | None = None
    """Another table, or a share; None: a tenth."""
    group: str | None = None
    key: str | None = None
    image_folder: str | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        columns = self.columns
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise InputError(f"column {twice[0]!r} is named twice; a column is one input, or a target")
        if not self.targets:
            raise InputError("no target; name the columns that are to be predicted with --target")
        if len(columns) == len(self.targets):
            raise InputError("no input; name columns with --image, --text, --number or --category")

    @property
    def columns(self) -> list[str]:
        """All columns of inputs and targets."""
        image = [self.image] if self.image is not None else []
        return [*image, *self.text, *self.numbers, *self.categories, *self.inputs, *self.targets]


def open_table(request: FitRequest) -> Rows:
    """The rows that a request is about, with pictures if it names them.

    Raises:
        InputError: it is no table, or has no column of this name for pictures.
    """
    rows = open_rows([request.table], SourceOptions(columns=ALL_COLUMNS))
    if request.image is None or "--image-column" not in rows.uses:  # shards keep pictures beside their columns
        return rows
    try:
        rows.require_column(request.image)
    except InputError as error:
        raise InputError(f"{request.table}: {error}") from error
    folder = None if request.image_folder is None else Path(request.image_folder)
    columns = replace(ALL_COLUMNS, image=request.image)
    return open_rows([request.table], SourceOptions(columns=columns, image_folder=folder))
