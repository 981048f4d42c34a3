"""Files of predictions that a command may replace: those that it wrote itself. Needs no torch."""

import csv
from importlib import import_module
from pathlib import Path
from typing import Any

from clipx.errors import InputError

WHAT = "predictions of a fitted model"
MARK = b"clipx"
"""The key of a parquet file's metadata under which it says `WHAT`."""
LAST = ("present", "problem")
"""The last columns of every file."""


def require_own(path: Path) -> None:
    """Refuses an ending of another format, and to replace what is no file of predictions.

    Raises:
        InputError: it is so, or pyarrow is missing.
    """
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise InputError(f"--out {path}: predictions are .csv or .parquet; name such a file")
    if is_parquet(path):
        _require_own_parquet(path)
    else:
        _require_own_csv(path)


def _require_own_csv(path: Path) -> None:
    """Its header ends as those of this file do."""
    try:
        if not path.is_file():  # opening a fifo would wait
            return
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, csv.Error):
        header = [""]
    if header and [name.rstrip("_") for name in header[-2:]] != list(LAST):
        raise InputError(f"--out {path}: a file is there that holds no {WHAT}; name another")


def _require_own_parquet(path: Path) -> None:
    parquet = import_arrow("pyarrow.parquet")
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        metadata = parquet.read_schema(path).metadata or {}
    except (OSError, ValueError):  # pyarrow's errors of form are ValueErrors
        metadata = {}
    if metadata.get(MARK) != WHAT.encode():
        raise InputError(f"--out {path}: a file is there that holds no {WHAT}; name another")


def is_parquet(path: Path) -> bool:
    """Whether a file of predictions is parquet, by its ending."""
    return path.suffix.lower() == ".parquet"


def import_arrow(module: str) -> Any:
    """A module of pyarrow.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError("--out: a parquet file needs pyarrow: pip install pyarrow; or name a .csv") from error
