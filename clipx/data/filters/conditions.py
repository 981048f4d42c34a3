"""The conditions of a filter, as people write them: `caption.words>=3`, `aspect<=3`, `json:language in en,de`."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Literal

from clipx.errors import InputError

Operator = Literal[">=", "<=", ">", "<", "==", "!=", "in"]
Value = str | float | bool
CAPTION_FIELDS = ("caption.words", "caption.characters")
IMAGE_FIELDS = ("width", "height", "min_side", "aspect")
_ORDER: Mapping[str, Callable[[float, float], bool]] = {">=": ge, "<=": le, ">": gt, "<": lt}
_OPERATORS = (*_ORDER, "==", "!=", "in")
_FIELDS = (*CAPTION_FIELDS, *IMAGE_FIELDS, "json:NAME", "parquet:NAME")
_SHAPE = re.compile(
    r"\s*(?P<field>[^<>=!~\s](?:.*?[^<>=!~\s])??)\s*(?P<operator>[<>=!~]+|\s[a-z]+\s)\s*(?P<value>.*?)\s*"
)


@dataclass(frozen=True)
class Condition:
    """What one field of a sample must be."""

    field: str
    operator: Operator
    values: tuple[str, ...]
    """The values as they were written; several only after `in`."""

    @property
    def text(self) -> str:
        """The condition in one spelling."""
        space = " " if self.operator == "in" else ""
        return f"{self.field}{space}{self.operator}{space}{','.join(self.values)}"

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Reads a condition.

        Raises:
            InputError: it is none, or has a field, operator or value that is not known; names the nearest known.
        """
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise InputError(f"condition {text!r} is not FIELD OPERATOR VALUE; write it as caption.words>=3")
        field, operator, value = match["field"], match["operator"].strip(), match["value"]
        _check_field(field, text)
        if operator not in _OPERATORS:
            nearest = _nearest({"=": "==", "=>": ">=", "=<": "<=", "<>": "!="}.get(operator, operator), _OPERATORS)
            raise InputError(f"condition {text!r}: no operator {operator!r}; did you mean {nearest}?")
        values = tuple(part.strip() for part in value.split(",")) if operator == "in" else (value,)
        if not all(values):
            raise InputError(f"condition {text!r} has no value; write it as caption.words>=3 or json:language in en,de")
        numeric = operator in _ORDER or field in CAPTION_FIELDS + IMAGE_FIELDS
        if numeric and any(_number(part) is None for part in values):
            raise InputError(f"condition {text!r} compares numbers; give one instead of {value!r}")
        return cls(field, operator, values)  # type: ignore[arg-type]

    def test(self) -> Callable[[Value], bool]:
        """A function that says whether a value passes."""
        numbers = [_number(value) for value in self.values]
        if self.operator in _ORDER:
            compare, limit = _ORDER[self.operator], numbers[0]
            assert limit is not None
            return lambda value: (number := _number(value)) is not None and compare(number, limit)
        texts = frozenset(self.values)
        exact = frozenset(number for number in numbers if number is not None)
        wanted = self.operator != "!="
        return lambda value: _equals(value, texts, exact) is wanted


def _equals(value: Value, texts: frozenset[str], numbers: frozenset[float]) -> bool:
    if isinstance(value, bool):
        return str(value).lower() in {text.lower() for text in texts}
    return value in texts if isinstance(value, str) else value in numbers


def _number(value: Value) -> float | None:
    """A finite number, also of text."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _check_field(field: str, text: str) -> None:
    source, colon, name = field.partition(":")
    if field in CAPTION_FIELDS + IMAGE_FIELDS or (source in ("json", "parquet") and name):
        return
    nearest = f"{_nearest(source, ('json', 'parquet'))}:{name or 'NAME'}" if colon else _nearest(field, _FIELDS)
    raise InputError(f"condition {text!r}: no field {field!r}; did you mean {nearest}? Known: {', '.join(_FIELDS)}")


def _nearest(word: str, known: tuple[str, ...]) -> str:
    return difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]
