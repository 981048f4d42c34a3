"""Lists of sample keys as sorted hashes: 8 bytes a key, whatever its length."""

import io
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import chain
from pathlib import Path

import numpy as np

from clipx.errors import InputError


@dataclass(frozen=True, eq=False)
class KeyList:
    """Keys of samples, or `SHARD.tar/KEY` if a key alone is not unique."""

    hashes: np.ndarray
    """uint64 (N,), ascending."""

    @classmethod
    def from_file(cls, path: Path) -> "KeyList":
        """Reads a text file with one key per line; blank lines do not count, and neither does a byte order mark.

        Raises:
            InputError: it cannot be read, holds no key, or is UTF-16.
        """
        try:
            with open(path, "rb") as file:
                first = next(file, b"")
                if first.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                    raise InputError(f"list of keys {path} is UTF-16; save it as UTF-8")
                lines = map(bytes.strip, chain([first.removeprefix(BOM_UTF8)], file))
                hashes = np.fromiter((hashed(line) for line in lines if line), np.uint64)
        except OSError as error:
            raise InputError(f"list of keys {path} cannot be read: {error.strerror}; give a text file") from error
        if not len(hashes):
            raise InputError(f"list of keys {path} is empty; it must hold one key per line")
        return cls(np.unique(hashes))

    @classmethod
    def from_bytes(cls, data: bytes) -> "KeyList":
        """Reads what `to_bytes` made.

        Raises:
            ValueError: `data` is something else.
        """
        try:
            hashes = np.load(io.BytesIO(data), allow_pickle=False)
        except (EOFError, MemoryError, OverflowError, TypeError, AttributeError) as error:
            raise ValueError(f"no list of keys: {error}") from error
        if not isinstance(hashes, np.ndarray) or hashes.dtype != np.uint64 or hashes.ndim != 1 or not len(hashes):
            raise ValueError("no list of keys")
        return cls(hashes)

    def to_bytes(self) -> bytes:
        """The list as a file."""
        buffer = io.BytesIO()
        np.save(buffer, self.hashes)
        return buffer.getvalue()

    @property
    def digest(self) -> str:
        """Equal for equal sets of keys."""
        return sha256(self.hashes.tobytes()).hexdigest()[:16]

    def holds(self, hashes: np.ndarray) -> np.ndarray:
        """bool (M,): which of `hashes` (uint64 (M,)) are in the list."""
        rows = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return self.hashes[rows] == hashes


def hashed(content: bytes) -> int:
    """64 bits of a hash."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
