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

from clipx.storage.json_rows import rows_from_end

log = logging.getLogger(__name__)

_MAX_WAITING = 64 << 20  # bytes of lines that a process keeps for a disk that does not take them


def drop_after(path: Path, step: int) -> None:
    """Drops rows of steps that a resumed run will train again, so that each step has its rows once.

    Steps of rows ascend, so the file is cut behind the last row that stays, with what a crash has torn there. It is
    read from its end: what is read is what is dropped, and one line is held at a time, however long the run was.
    """
    if not path.exists():
        return
    size = path.stat().st_size
    end = next((end for row, end in rows_from_end(path) if row.get("step", 0) <= step), None)
    kept = 0 if end is None else min(end + 1, size)  # with the line's own end, unless that was torn off
    if kept < size:
        with path.open("r+b") as file:
            file.truncate(kept)
            os.fsync(file.fileno())


class JsonLines:
    """Appends rows to a file; those that a full disk does not take wait for the next ones, and it is said once.

    So that a full disk does not fill the memory too, the oldest of them are dropped beyond 64 MiB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: deque[bytes] = deque()
        self._num_dropped = 0
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
            self._drop_oldest()
            return
        if self._is_failing:
            dropped = f"; {self._num_dropped} older ones were too many to keep" if self._num_dropped else ""
            num_waiting = len(self._waiting) - len(rows)
            log.warning("%s is written again, with %d lines that had to wait%s", self.path, num_waiting, dropped)
        self._waiting.clear()
        self._num_dropped = 0
        self._is_failing = False

    def _drop_oldest(self) -> None:
        """Keeps the newest lines that do not take more memory than they may, at least one."""
        size = sum(map(len, self._waiting))
        while size > _MAX_WAITING and len(self._waiting) > 1:
            size -= len(self._waiting.popleft())
            self._num_dropped += 1


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
