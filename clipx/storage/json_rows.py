"""Reads files of JSON lines that a run appends to, whatever a crash has made of them."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; lines that a crash or a full disk left incomplete are passed over."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows
