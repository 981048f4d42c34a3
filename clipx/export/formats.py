"""The formats of an export; imports no torch, so that a wrong name is said at once."""

from collections.abc import Sequence
from typing import Literal, get_args

from clipx.errors import InputError

Format = Literal["hf", "open_clip"]


def check_formats(formats: Sequence[str]) -> None:
    """Raises InputError if there is no format, or an unknown one."""
    known = get_args(Format)
    if not formats or set(formats) - set(known):
        raise InputError(f"formats {', '.join(formats) or 'none'}: known are {' and '.join(known)}; give one or both")
