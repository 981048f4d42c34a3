"""What a cell of a sample's record means to a fit run: a number, a label, several labels, a text, or nothing.

A record is what a sample's json member holds: values as JSON has them, whoever wrote it. Absent is what is null, NaN or
blank; what is there and cannot be read is an error, never absent.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from clipx.config.fit_inputs import Transform
from clipx.data.rows.cells import label_or_labels, number_or_text
from clipx.data.text_cleaning import is_blank, without_bom

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LARGEST = 1e30  # of a number; its square and its float32 are finite, too
_EXACT = 2**53  # floats from here on are no exact integers
_SHOWN = 60  # characters of a cell in a message

T = TypeVar("T")


class CellError(ValueError):
    """A cell that cannot be read; the message is one line with its column, if known, and its value."""

    def __init__(self, value: object, rule: str) -> None:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        cut = shown[:_SHOWN] + "..." * (len(shown) > _SHOWN)
        super().__init__(f"{cut!r} {rule}" if isinstance(value, str) else f"{cut} {rule}")
        self.column: str | None = None

    def __str__(self) -> str:
        return super().__str__() if self.column is None else f"column {self.column!r}: {super().__str__()}"


def read_cell(read: Callable[[object], T], record: Mapping[str, object], column: str) -> T:
    """What `read` makes of the cell of a column.

    Raises:
        CellError: from `read`, with the column.
    """
    try:
        return read(record.get(column))
    except CellError as error:
        error.column = column
        raise


def is_absent(value: object) -> bool:
    """Whether a cell holds nothing: null, NaN, or a text that shows nothing."""
    if isinstance(value, str):
        return is_blank(value)
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: object) -> float | None:
    """The number in a cell, also one that is written as a text ("12.5", "1e3", " 7 "); None if it is absent.

    Raises:
        CellError: it is no number, or larger than 1e30.
    """
    if is_absent(value):
        return None
    if isinstance(value, str):
        text = without_bom(value).strip()
        if text.lower() == "nan":
            return None
        value = float(text) if _NUMBER.fullmatch(text) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CellError(value, "is no number")
    if not abs(value) <= _LARGEST:
        raise CellError(value, f"is larger than {_LARGEST:g}, the largest number that is taken")
    return float(value)


def label(value: object) -> str | None:
    """The label in a cell as a text; None if it is absent. 3, 3.0 and "3" are the same one, as are true and "True".

    Raises:
        CellError: it is a list or an object.
    """
    if is_absent(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = _encodable(without_bom(value).strip())
        if text.lower() in ("true", "false"):  # pandas and spreadsheets write them so
            return text.lower()
        value = number_or_text(text)
        if isinstance(value, str):
            return text
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    if not isinstance(value, int | float):
        raise CellError(value, "is no single label")
    return json.dumps(value)


def labels(value: object, *, separator: str) -> list[str] | None:
    """The labels in a cell, each once, in their order; an empty list if it says that there are none, None if absent.

    Args:
        value: a list, or a text: a list as JSON, Python or numpy write it, or labels with the separator between them.
        separator: of labels in a text.

    Raises:
        CellError: a label is a list or an object.
    """
    if is_absent(value):
        return None
    if isinstance(value, str):
        parsed = label_or_labels(value) if value.strip().startswith("[") else value
        value = parsed if isinstance(parsed, list) else value.split(separator)
    listed: Sequence[object] = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(name for item in listed if (name := label(item)) is not None))


def text(value: object) -> str:
    """The text in a cell, "" if it is absent; of a list its texts, joined by commas.

    Raises:
        CellError: it is an object.
    """
    if is_absent(value):
        return ""
    if isinstance(value, str):
        return _encodable(without_bom(value).strip())
    if isinstance(value, list):
        return ", ".join(part for item in value if (part := text(item)))
    if not isinstance(value, int | float):
        raise CellError(value, "is no text")
    return json.dumps(value)


def scaled(value: float, *, mean: float, std: float) -> float:
    """The number as a model reads and predicts it, in standard deviations from the training rows' mean.

    Raises:
        CellError: it is too far away for float32.
    """
    distance = (value - mean) / std
    if not abs(distance) <= _LARGEST:
        raise CellError(value, f"is {distance:g} standard deviations away from the training rows' mean")
    return distance


def joined_text(record: Mapping[str, object], columns: Sequence[str]) -> str:
    """The texts of columns in their order, joined by commas; "" if all are absent.

    Raises:
        CellError: a cell is no text.
    """
    return ", ".join(part for name in columns if (part := read_cell(text, record, name)))


def transformed(value: float, transform: Transform) -> float:
    """The number that a model is trained on, before it is scaled.

    Raises:
        CellError: the logarithm of a number that is not above 0.
    """
    if transform == "none":
        return value
    if value <= 0:
        raise CellError(value, "is not above 0, as `transform: log` needs it (`none` takes any number)")
    return math.log(value)


def _encodable(value: str) -> str:
    """The text itself, unless it has half of a surrogate pair, which JSON can spell and no encoding takes."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise CellError(value.encode("utf-8", "replace").decode(), "holds half of a surrogate pair") from error
    return value
