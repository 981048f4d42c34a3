"""Files of JSON lines that are appended to while a run goes on; a crash or a full disk costs lines, never the run."""

import json
import logging
import math
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipx.storage.folders import write_atomically
from clipx.storage.json_rows import read_rows

log = logging.getLogger(__name__)

_MAX_WAITING = 10_000  # lines that a process keeps for a disk that does not take them


def drop_after(path: Path, step: int) -> None:
    """Drops rows of steps that a resumed run will train again, so that each step has its rows once."""
    if path.exists():
        kept = [row for row in read_rows(path) if row.get("step", 0) <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))


class JsonLines:
    """Appends rows to a file; those that a full disk does not take wait for the next ones, and it is said once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING)
        self._is_failing = False

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds a line per row, behind those that wait. Numbers that are not finite become null."""
        self._waiting += [json.dumps(_finite(row)).encode() + b"\n" for row in rows]
        if not self._waiting:
            return
        try:
            _append_whole(self.path, b"".join(self._waiting))
        except OSError as error:
            if not self._is_failing:
                log.error("cannot write %s (%s); the run goes on, and its lines wait for space", self.path, error)
            self._is_failing = True
            return
        if self._is_failing:
            log.warning(
                "%s is written again, with %d lines that had to wait", self.path, len(self._waiting) - len(rows)
            )
        self._waiting.clear()
        self._is_failing = False


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _append_whole(path: Path, data: bytes) -> None:
    """Adds all of the data to a file or, with an error, nothing; a line that a crash has torn is ended before."""
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) not in (b"", b"\n"):
            data = b"\n" + data
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise
