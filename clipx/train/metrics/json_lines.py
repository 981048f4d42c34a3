"""Files of JSON lines that are appended to while a run goes on; a crash or a full disk costs lines, never the run."""

import json
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; lines that a crash or a full disk left incomplete are passed over."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Adds lines to a file. A full disk costs the lines and logs an error. Numbers that are not finite become null."""
    finite = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]
    try:
        with path.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            torn = file.read() not in (b"", b"\n")
            file.write(b"\n" * torn + b"".join(json.dumps(row).encode() + b"\n" for row in finite))
    except OSError as error:
        log.error("cannot write %s (%s); the run goes on without these lines", path, error)
