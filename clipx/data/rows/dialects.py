"""How a table of text is written: what separates its values, whether quotes hold them together, what its columns are.

The first line tells: it is read with that separator with which it names the columns that are wanted.
"""

import csv
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipx.data.rows.row import TableColumns
from clipx.errors import InputError, some_names

if TYPE_CHECKING:
    from _csv import Reader

_DELIMITERS = ",\t;|"
_NUMBERED = re.compile(
    r"[^\t,|]+#[0-9]+\t"
)  # Flickr8k.token.txt, Flickr30k's results.token: NAME.jpg#0, a tab, a caption
_NUMBER_OF_CAPTION = re.compile(r"#[0-9]+$")
_DATA = re.compile(r"\w+://|.*\.(jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|avif)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """What cannot be seen from a CSV or TSV file."""

    quoting: bool = True
    """Whether quotes hold a value together; else they are a part of it, and each line is a row."""
    header: Sequence[str] = ()
    """The names of the columns of a file without a row of names."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one file is written."""

    delimiter: str
    quoting: bool
    names: Sequence[str] = ()
    """Of the columns; empty if the first row names them."""
    spaced: bool = False
    """Whether a space follows each delimiter."""
    numbered: bool = False
    """Whether images have the number of the caption behind them."""

    def reader(self, lines: Iterable[str], *, strict: bool = False) -> "Reader":
        """Reads rows of values."""
        csv.field_size_limit(sys.maxsize)  # of this process
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE,
            skipinitialspace=self.spaced,
            strict=strict,
        )

    def image(self, value: str) -> str:
        """The image that a value names."""
        return _NUMBER_OF_CAPTION.sub("", value) if self.numbered else value


def find_dialect(first_line: bytes, path: Path, columns: TableColumns, format: TextFormat) -> Dialect:
    """The dialect of a file from its first line.

    Raises:
        InputError: no separator gives the columns that are wanted.
    """
    line = first_line.decode("utf-8-sig", "replace").rstrip("\r\n")
    if _NUMBERED.match(line) and not format.header:
        return Dialect(delimiter="\t", quoting=False, names=("image", "caption"), numbered=True)
    delimiters = "\t,;|" if path.suffix.lower() in (".tsv", ".tab") else _DELIMITERS
    dialects = [_with_delimiter(line, delimiter, format) for delimiter in delimiters if delimiter in line]
    if format.header:
        of_length = (dialect for dialect in dialects if len(_values(line, dialect)) == len(format.header))
        return next(of_length, Dialect(delimiter=delimiters[0], quoting=format.quoting, names=format.header))
    # a column of pictures tells delimiters apart, also where none is needed
    if fitting := [dialect for dialect in dialects if _fits(line, dialect, replace(columns, needs_image=True))]:
        return fitting[0]
    fitting = [dialect for dialect in dialects if _fits(line, dialect, columns)] or dialects
    dialect = max(
        fitting, key=lambda dialect: len(_values(line, dialect)), default=Dialect(delimiter=",", quoting=True)
    )
    names = _values(line, dialect)
    if any(map(_DATA.match, names)):
        raise InputError(
            f"{path}: its first row names no columns but holds values ({some_names(names)}); give their names with "
            "--header, for example --header image,caption"
        )
    return dialect  # whose columns are not found, which is said where they are looked for


def _fits(line: str, dialect: Dialect, columns: TableColumns) -> bool:
    """Whether a dialect gives the columns that are wanted."""
    try:
        columns.resolve(_values(line, dialect), "")
    except InputError:
        return False
    return True


def _with_delimiter(line: str, delimiter: str, format: TextFormat) -> Dialect:
    spaced = line.count(delimiter) == len(re.findall(re.escape(delimiter) + " ", line))
    return Dialect(delimiter=delimiter, quoting=format.quoting, names=format.header, spaced=spaced)


def _values(line: str, dialect: Dialect) -> list[str]:
    try:
        return [value.strip() for value in next(dialect.reader([line]), [])]
    except csv.Error:  # which is said when the file is read
        return []
