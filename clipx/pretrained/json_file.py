"""A file of JSON that another library wrote; imports no torch."""

import json
from pathlib import Path
from typing import Any

from clipx.errors import InputError


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a file.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file; give a folder that has it") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{file} cannot be read as JSON ({reason}); fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, no mapping; fetch it again")
    return content
