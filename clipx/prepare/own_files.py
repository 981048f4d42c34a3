"""Files that clipx draws and writes again under the same name, and the marks by which it knows its own.

Needs no torch, nor what it asks for: it is called before they are imported.
"""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from clipx.errors import InputError

PNG_MARK = {"Software": "clipx"}
"""Text chunk of every PNG that clipx draws."""


def require_matplotlib() -> None:
    """Raises InputError if plots cannot be drawn: better said before the data is read than after."""
    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install matplotlib, or leave out --out")


def require_own_png(path: Path) -> None:
    """Checks that nothing is at `path`, or a PNG that clipx has drawn.

    Raises:
        InputError: something else is there.
    """
    _require_own(path, _is_own_png)


def require_own_json(path: Path, keys: set[str]) -> None:
    """Checks that nothing is at `path`, or a JSON file with exactly these keys, as clipx writes it.

    Raises:
        InputError: something else is there.
    """
    _require_own(path, lambda path: json.loads(path.read_bytes()).keys() == keys)


def _require_own(path: Path, is_own: Callable[[Path], bool]) -> None:
    if not path.exists():
        return
    try:
        own = path.is_file() and is_own(path)
    except Exception:  # whatever a stranger's file makes of a parser
        own = False
    if not own:
        raise InputError(f"{path} is there, and clipx did not write it; move it away or name another")


def _is_own_png(path: Path) -> bool:
    with Image.open(path) as image:
        return image.format == "PNG" and image.info.get("Software") == PNG_MARK["Software"]
