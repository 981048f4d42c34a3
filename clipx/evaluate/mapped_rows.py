"""Arrays of more rows than fit into memory, in files; and texts without an object for each.

Pages of a mapped file count as memory of the process for as long as it keeps them. `read_rows` gives them back, so a
pass over a file of any size takes the memory of one tile.

Shapes: N rows, D numbers in each.
"""

import mmap
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

_IN_MEMORY = 128 * 2**20  # bytes of embeddings that a process may hold before it writes them to a file


def read_rows(rows_ND: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """A copy of some rows; of a mapped file nothing else stays in memory."""
    copy = np.array(rows_ND[start:stop])
    if (mapping := _mapping_of(rows_ND)) is not None:
        mapping.madvise(mmap.MADV_DONTNEED)
    return copy


def take_rows(rows_ND: NDArray[Any], index_Q: NDArray[np.int64]) -> NDArray[Any]:
    """A copy of the rows with these numbers; of a mapped file nothing else stays in memory."""
    copy = rows_ND[index_Q]
    if (mapping := _mapping_of(rows_ND)) is not None:
        mapping.madvise(mmap.MADV_DONTNEED)
    return copy


def _mapping_of(rows: Any) -> mmap.mmap | None:
    while isinstance(rows, np.ndarray | memoryview):
        rows = rows.base if isinstance(rows, np.ndarray) else rows.obj
    return rows if isinstance(rows, mmap.mmap) else None


class RowSpool:
    """Rows of float32 that arrive in pieces: in memory while they are few, then in a file without a name.

    Args:
        width: D.
        in_memory: bytes from which on they are in a file.
    """

    def __init__(self, width: int, *, in_memory: int = _IN_MEMORY) -> None:
        self._width = width
        self._in_memory = in_memory
        self._pieces: list[NDArray[np.float32]] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def append(self, rows_ND: NDArray[np.float32]) -> None:
        """Adds rows at the end.

        Raises:
            OSError: the folder for temporary files is full, or cannot be written.
        """
        self._bytes += rows_ND.nbytes
        if self._file is None and self._bytes > self._in_memory:
            self._file = tempfile.TemporaryFile(prefix="clipx-features-")  # noqa: SIM115 (lives as long as the rows)
            for piece in self._pieces:
                self._file.write(piece.tobytes())
            self._pieces = []
        if self._file is None:
            self._pieces.append(np.array(rows_ND, dtype=np.float32))
        else:
            self._file.write(rows_ND.astype(np.float32, copy=False).tobytes())

    def rows(self) -> NDArray[np.float32]:
        """All rows (N, D), read-only; the file goes with the last reference to them."""
        shape = (self._bytes // (4 * self._width), self._width)
        if self._file is None:
            rows = np.concatenate([np.empty((0, self._width), np.float32), *self._pieces])
            rows.flags.writeable = False
            return rows
        self._file.flush()
        return np.memmap(self._file, dtype=np.float32, mode="r", shape=shape)


class TextList(Sequence[str]):
    """Texts as one run of UTF-8 and the place where each ends: a million of them take the bytes of their letters.

    Args:
        utf8: uint8, all texts, one after the other.
        end_N: int64, where each ends.
    """

    def __init__(self, utf8: NDArray[np.uint8], end_N: NDArray[np.int64]) -> None:
        self.utf8 = utf8
        self.end_N = end_N

    @classmethod
    def of(cls, texts: Iterable[str]) -> "TextList":
        """The same texts."""
        builder = TextListBuilder()
        for text in texts:
            builder.append(text)
        return builder.built()

    def __len__(self) -> int:
        return len(self.end_N)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self.end_N[index - 1]) if index > 0 else 0
        return self.utf8[start : int(self.end_N[index])].tobytes().decode("utf-8", errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


class TextListBuilder:
    """Makes a `TextList` of texts that come one by one."""

    def __init__(self) -> None:
        self._utf8 = bytearray()
        self._ends = array("q")

    def append(self, text: str) -> None:
        """Adds a text at the end."""
        self._utf8 += text.encode("utf-8", errors="surrogatepass")
        self._ends.append(len(self._utf8))

    def __len__(self) -> int:
        return len(self._ends)

    def built(self) -> TextList:
        """The texts; no more can be added."""
        return TextList(np.frombuffer(self._utf8, np.uint8), np.array(self._ends, dtype=np.int64))
