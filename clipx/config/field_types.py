"""Types of single values with their limits, and the pydantic settings that all parts of the schema share."""

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from clipx.config.paths import expand_home
from clipx.errors import InputError

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, populate_by_name=True)
NOT_BLANK = r"\S"


def _no_bool(value: Any) -> Any:
    """Refuses true and false, which pydantic would read as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


NO_BOOL = BeforeValidator(_no_bool)  # after the limits, or they are missing in the JSON schema

Count = Annotated[int, Field(ge=1), NO_BOOL]
Interval = Annotated[int, Field(ge=0), NO_BOOL]
ContextLength = Annotated[int, Field(ge=3), NO_BOOL]
Number = Annotated[float, NO_BOOL]
Fraction = Annotated[float, Field(ge=0, le=1), NO_BOOL]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1), NO_BOOL]
PositiveFraction = Annotated[float, Field(gt=0, le=1), NO_BOOL]
Positive = Annotated[float, Field(gt=0), NO_BOOL]
NonNegative = Annotated[float, Field(ge=0), NO_BOOL]
Text = Annotated[str, Field(pattern=NOT_BLANK)]


def _in_one_line(path: str) -> str:
    """Refuses line ends and other control characters, which a YAML block or lines of Windows leave behind."""
    if any(ord(character) < ord(" ") for character in path):
        raise InputError(f"{path!r} is no path: it has a line end or another control character; write it in one line")
    return path


def _expand_shards(text: str) -> str:
    return "::".join(map(expand_home, text.split("::")))


def _plain(path: Any) -> Any:
    """The text of a `pathlib.Path`, which people write in Python."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


PLAIN = BeforeValidator(_plain)
FilePath = Annotated[Text, AfterValidator(_in_one_line), AfterValidator(expand_home), PLAIN]
"""A file or folder; may begin with ~. Addresses of fsspec stay as they are."""
ShardPath = Annotated[Text, AfterValidator(_expand_shards), PLAIN]
"""Like `FilePath`, or several joined by `::`, or a command."""
HubName = Annotated[str, AfterValidator(expand_home), PLAIN]
"""A name at a hub, or a folder, which may begin with ~."""
