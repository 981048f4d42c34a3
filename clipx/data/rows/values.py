"""What the values of a source become: captions, the fields of a record, and the text that tells cells apart."""

import json
import math
from collections.abc import Mapping, Sequence

from clipx.data.captions import is_blank

Record = Mapping[str, object]

_EXACT = 2**53  # floats from here on are no exact integers


def captions_of(values: Sequence[object]) -> list[str]:
    """All captions in values that are strings or lists of them; blank ones and what is no text are passed over."""
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    # JSON can spell half of a surrogate pair, which is no character and has no encoding
    strings = [text.encode("utf-8", "ignore").decode() for text in texts if isinstance(text, str)]
    stripped = [text.lstrip("\ufeff").strip() for text in strings]
    return [text for text in stripped if not is_blank(text)]  # \x85 is white space, but cleaned alone an ellipsis


def joined_caption(values: Sequence[object], separator: str) -> list[str]:
    """The texts and numbers of values as one caption, in their order; no caption if all are blank."""
    cells = [cell for value in values for cell in (value if isinstance(value, list) else [value])]
    texts = captions_of([_number_text(cell) for cell in cells])
    return [separator.join(texts)] if texts else []


def _number_text(cell: object) -> object:
    is_number = isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell)
    return json.dumps(cell) if is_number else cell


def plain(record: Record) -> dict[str, object]:
    """The values of a record that JSON can hold: no bytes, no missing values, NaN among them; within lists null."""
    values = {key: _plain(value) for key, value in record.items()}
    return {key: value for key, value in values.items() if value is not None and value != ""}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):  # parquet's maps are tuples of key and value
        return [_plain(item) for item in value]
    no_value = isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value))
    return None if no_value else value


def json_member(record: Record) -> bytes:
    """A record as a sample's json member; a lone surrogate from somebody's JSON has no encoding."""
    return json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "replace")


def as_json(record: Record) -> dict[str, object]:
    """A record as somebody reads it from a sample's json member."""
    read: dict[str, object] = json.loads(json_member(record))
    return read


def cell_text(value: object) -> str | None:
    """The text that is equal for equal cells, whatever the source stores them as: 3 and 3.0 are "3".

    None for a cell that is empty: no value, NaN, or a text that shows nothing.
    """
    value = _plain(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:  # a column with an empty cell is floats
        value = int(value)
    if isinstance(value, list | Mapping):
        value = json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)
    text = "" if value is None else str(value).strip()
    return None if is_blank(text) else text
