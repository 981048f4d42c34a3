"""What a cell of a CSV file means: a number, several captions or labels, or the text that it is."""

import ast
import io
import json
import re
import tokenize
from contextlib import suppress

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MAX_DIGITS = 400  # Python refuses to read integers of thousands


def number_or_text(cell: str) -> object:
    """A number if JSON writes it back as it is: 123e45, 007 and 0.50 stay texts."""
    if len(cell) > _MAX_DIGITS or not _NUMBER.fullmatch(cell):
        return cell
    number = json.loads(cell)
    return number if json.dumps(number) == cell else cell


def text_or_texts(cell: str) -> str | list[str]:
    """The texts of a cell that is a list of them, as JSON, Python (pandas) or numpy write it; else the cell."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return cell
    for parse in (json.loads, _strings):
        try:
            values: object = parse(text)
        except (ValueError, SyntaxError, tokenize.TokenError, RecursionError):
            continue
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            return values
    return cell


def label_or_labels(cell: str) -> object:
    """The labels of a cell that is a list of them, words as in `text_or_texts` or whole numbers; else one label."""
    texts = text_or_texts(cell)
    if isinstance(texts, str) and texts.strip().startswith("["):
        with suppress(ValueError, RecursionError):
            values: object = json.loads(texts)
            if isinstance(values, list) and all(type(value) in (int, str) for value in values):
                return values
    return number_or_text(texts) if isinstance(texts, str) else texts


def _strings(text: str) -> list[object]:
    """The strings of a list as Python writes it.

    Read one by one: numpy puts no comma between them, and Python would join them into one.
    """
    values: list[object] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.STRING:
            values.append(ast.literal_eval(token.string))
        elif token.string.strip() not in ("", "[", "]", ","):
            raise ValueError(f"{token.string!r} is no text")
    return values
