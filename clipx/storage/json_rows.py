"""Reads files of JSON lines that a run appends to, whatever a crash has made of them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20  # bytes


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; lines that a crash or a full disk left incomplete are passed over."""
    return list(each_row(path))


def each_row(path: Path) -> Iterator[dict[str, Any]]:
    """The same one by one, of a file that may be larger than memory."""
    if not path.exists():
        return
    with path.open(errors="replace") as lines:
        for line in lines:
            if (row := _parsed(line)) is not None:
                yield row


def rows_from_end(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a file that is there, last to first, each with the place in bytes at which its line ends."""
    for line, start in _lines_from_end(path):
        if (row := _parsed(line.decode(errors="replace"))) is not None:
            yield row, start + len(line)


def _lines_from_end(path: Path) -> Iterator[tuple[bytes, int]]:
    """Lines without their ends, each with its place; holds a block and the line that it begins in."""
    with path.open("rb") as file:
        start, begun = file.seek(0, os.SEEK_END), b""
        while start:
            stop, start = start, max(0, start - _BLOCK)
            file.seek(start)
            read = file.read(stop - start) + begun
            begun, *lines = read.split(b"\n")
            place = start + len(read)
            for line in reversed(lines):
                place -= len(line)
                yield line, place
                place -= 1  # the line's end before it
        yield begun, 0


def _parsed(line: str) -> dict[str, Any] | None:
    """The row of a line; None if it has none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
