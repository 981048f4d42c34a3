"""Addresses of very many shards in little memory: 500,000 names are one array of 5 MB, not half a million strings."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from operator import index as as_int
from typing import NamedTuple, overload

import numpy as np

_CHUNK = 1 << 16  # names that stand as Python objects at one time
_DIGITS = re.compile(rb"[0-9]+")


class ShardGroup(NamedTuple):
    """Shards of one folder, one after the other."""

    prefix: str
    """What stands before every name, its slash included; `pipe:` before commands."""
    names: np.ndarray
    """bytes (N,), UTF-8 without trailing NULs."""


class ShardPaths(Sequence[str]):
    """The addresses of runs, laid end to end."""

    def __init__(self, runs: Iterable[ShardGroup]) -> None:
        self.runs = tuple(runs)
        self.starts = tuple(accumulate((len(run.names) for run in self.runs), initial=0))
        """Ordinal of the first shard of each run, and the number of shards."""

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        run_index, place = self.locate(index)
        run = self.runs[run_index]
        return run.prefix + decoded(run.names[place])

    def __iter__(self) -> Iterator[str]:
        for run in self.runs:
            for first in range(0, len(run.names), _CHUNK):
                yield from (run.prefix + decoded(name) for name in run.names[first : first + _CHUNK].tolist())

    def __repr__(self) -> str:
        return f"<{len(self)} shards, first: {self[0]}>" if len(self) else "<no shards>"

    def locate(self, index: int) -> tuple[int, int]:
        """The index of a shard's run, and its place there."""
        index = as_int(index)
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(index)
        run = bisect_right(self.starts, index) - 1  # of equal starts the last: an empty run holds nothing
        return run, index - self.starts[run]


def has_query(run: ShardGroup) -> bool:
    """Whether shards of a web server have names like `x.tar?signature=...`."""
    return run.prefix.startswith(("http://", "https://")) and any(b"?" in name for name in run.names.tolist())


def split_query(url: str) -> tuple[str, str]:
    """The folder, and the name with its query, of `https://HOST/FOLDER/NAME?a=b`; no name where `?` is a wildcard."""
    base, _, query = url.partition("?")
    folder = base[: base.rfind("/") + 1]
    return folder, url[len(folder) :] if "=" in query or base.endswith(".tar") else ""


def decoded(name: bytes) -> str:
    """A name as the operating system takes it."""
    return name.decode("utf-8", "surrogateescape")


def packed(names: Iterable[str]) -> np.ndarray:
    """bytes (N,) of `names`."""
    return packed_bytes(name.encode("utf-8", "surrogateescape") for name in names)


def packed_bytes(names: Iterable[bytes]) -> np.ndarray:
    """bytes (N,) of `names`."""
    rest = iter(names)
    chunks = [np.empty(0, "S1")]
    while chunk := list(islice(rest, _CHUNK)):
        chunks.append(np.array(chunk, dtype=np.bytes_))
    return np.concatenate(chunks)


def naturally_sorted(names: np.ndarray) -> np.ndarray:
    """`names` (bytes (N,)) in natural order: 2 before 10."""
    if len(names) <= 1:
        return names
    names = np.sort(names)
    letters = names.view(np.uint8).reshape(len(names), -1)
    digits = (letters >= ord("0")) & (letters <= ord("9"))
    if (digits == digits[0]).all():  # all numbers have as many digits and stand in one column: as bytes
        return names
    return names[np.argsort(packed_bytes(_DIGITS.sub(_by_length, name) for name in names), kind="stable")]


def found_rows(ordered: np.ndarray, names: np.ndarray) -> np.ndarray:
    """int64 (N,): where each of `names` stands in `ordered` (bytes, ascending), -1 if it does not."""
    if not len(ordered):
        return np.full(len(names), -1)
    rows = np.minimum(np.searchsorted(ordered, names), len(ordered) - 1)
    return np.where(ordered[rows] == names, rows, -1)


def _by_length(match: re.Match[bytes]) -> bytes:
    """A number written so that longer ones come later."""
    number = match[0].lstrip(b"0")
    return bytes([min(ord("0") + len(number), 255)]) + number
