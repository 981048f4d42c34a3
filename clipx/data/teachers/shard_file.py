"""The file of a shard's embeddings: written whole, and mapped into memory, which the processes of a machine share.

Layout, little-endian: the header; int64 dimension of each teacher (T); uint64 hash of each key (N, ascending) and int64
row (N), which is -1 for a sample without embeddings; int64 first_text (R+1); uint64 digest of each text (C); the CRC-32
of all this as uint64; then for each teacher, each from a multiple of 64 bytes on, bfloat16 images (R, K, D) and texts
(C, D).

N samples, R of them with embeddings, in the shard's order; K views, C texts, T teachers, D numbers of an embedding.
"""

import mmap
import os
import zlib
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipx.storage.files import open_regular

_MAGIC = b"CLIPXTE1"
_HEADER = Struct("<8s5q")  # magic, N, R, C, K, T
_CHECKSUM = Struct("<Q")
_ALIGNED = 64
_SQUARES = (0.9, 1.1)  # of the length of a unit vector that is rounded to bfloat16


def text_digest(text: str) -> int:
    """64 bits by which a text is found."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def key_hash(key: str) -> int:
    """64 bits by which a sample is found."""
    return int.from_bytes(blake2b(key.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")


def shard_to_parts(
    keys: Sequence[str],
    rows: Sequence[int],
    texts: Sequence[Sequence[str]],
    images_RKD: Sequence[NDArray[np.uint16]],
    texts_CD: Sequence[NDArray[np.uint16]],
) -> list[bytes | memoryview]:
    """The consecutive parts of a shard's file.

    Args:
        keys: of all N samples, each once.
        rows: of each, -1 without embeddings.
        texts: of each of the R rows.
        images_RKD: of each teacher, the bits of bfloat16.
        texts_CD: of each teacher, of the texts of all rows, one after the other.
    """
    hashes_N = np.array([key_hash(key) for key in keys], "<u8")
    order_N = np.argsort(hashes_N, kind="stable")
    first_text = np.cumsum([0, *map(len, texts)])
    digests_C = np.array([text_digest(text) for row in texts for text in row], "<u8")
    dims = np.array([array.shape[-1] for array in images_RKD], "<i8")
    views = images_RKD[0].shape[1]
    columns = [dims, hashes_N[order_N], np.array(rows, "<i8")[order_N], first_text.astype("<i8"), digests_C]
    header = _HEADER.pack(_MAGIC, len(keys), len(texts), len(digests_C), views, len(dims))
    index = header + b"".join(column.tobytes() for column in columns)
    index += _CHECKSUM.pack(zlib.crc32(index))
    parts: list[bytes | memoryview] = [index]
    at = len(index)
    for pair in zip(images_RKD, texts_CD, strict=True):
        for array in pair:
            parts += [bytes(-at % _ALIGNED), np.ascontiguousarray(array, "<u2").data.cast("B") if array.size else b""]
            at += len(parts[-2]) + array.nbytes
    return parts


def require_whole(path: Path, *, rows: int, texts: int, dims: Sequence[int], views: int) -> None:
    """Looks at a file's header and length alone; for the rest see `ShardFile`.

    Args:
        path: of the file.
        rows: R, as the description says.
        texts: C, as it says.
        dims: D of each teacher, as it says.
        views: K, as it says.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is cut, or of another store.
    """
    with open(open_regular(path), "rb", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        header = _Header.read(file.read(_HEADER.size), teachers=len(dims), views=views)
    if (header.rows, header.texts) != (rows, texts):
        raise ValueError("not of this store")
    header.require(length, dims=dims)


class _Header(NamedTuple):
    """What decides how long a file is."""

    samples: int
    rows: int
    texts: int
    views: int
    teachers: int

    @classmethod
    def read(cls, header: bytes, *, teachers: int, views: int) -> "_Header":
        """Raises ValueError if it is cut, or of another store."""
        if len(header) < _HEADER.size:
            raise ValueError("too short")
        magic, *counts = _HEADER.unpack(header)
        found = cls(*counts)
        if magic != _MAGIC or min(found) < 0 or (found.views, found.teachers) != (views, teachers):
            raise ValueError("not of this store")
        return found

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Of the columns before the checksum, of 8 bytes a number."""
        return self.teachers, self.samples, self.samples, self.rows + 1, self.texts

    @property
    def body(self) -> int:
        """Bytes before the checksum."""
        return _HEADER.size + 8 * sum(self.counts)

    def require(self, length: int, *, dims: Sequence[int]) -> None:
        """Raises ValueError if a file has not this length."""
        wanted = self.body + _CHECKSUM.size
        for dim in dims:
            for count in (self.rows * self.views, self.texts):
                wanted += -wanted % _ALIGNED + 2 * count * dim
        if length != wanted:
            raise ValueError(f"{length:,} bytes, not {wanted:,}")


class ShardFile:
    """The embeddings of a shard.

    Args:
        path: of the file.
        dims: D of each teacher, as the description says.
        views: K, as it says.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or of another store.
    """

    def __init__(self, path: Path, *, dims: Sequence[int], views: int) -> None:
        with open(open_regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size < _HEADER.size:
                raise ValueError("too short")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)  # rows are read out of their order: what lies around one is not wanted
        header = _Header.read(self._map[: _HEADER.size], teachers=len(dims), views=views)
        header.require(len(self._map), dims=dims)
        body = header.body
        if _CHECKSUM.unpack(self._map[body : body + _CHECKSUM.size])[0] != zlib.crc32(memoryview(self._map)[:body]):
            raise ValueError("the checksum is wrong")
        columns, at = [], _HEADER.size
        for count, dtype in zip(header.counts, ("<i8", "<u8", "<i8", "<i8", "<u8"), strict=True):
            columns.append(np.frombuffer(self._map, dtype, count, at))
            at += 8 * count
        stored_dims, self._hashes_N, self._rows_N, self._first_text, self._digests_C = columns
        if stored_dims.tolist() != list(dims):
            raise ValueError("not of this store")
        self._map_embeddings(at + _CHECKSUM.size, header, dims=dims)

    def _map_embeddings(self, at: int, header: _Header, *, dims: Sequence[int]) -> None:
        self._images_RKD: list[NDArray[Any]] = []
        self._texts_CD: list[NDArray[Any]] = []
        rows, views, texts = header.rows, header.views, header.texts
        for dim in dims:
            for shape, arrays in (((rows, views, dim), self._images_RKD), ((texts, dim), self._texts_CD)):
                at += -at % _ALIGNED
                size = int(np.prod(shape))
                arrays.append(np.frombuffer(self._map, "<u2", size, at).reshape(shape))
                at += 2 * size

    def row(self, key: str) -> int | None:
        """The row of a sample; -1 if it has no embeddings, None if it was not there."""
        wanted = np.uint64(key_hash(key))
        place = int(self._hashes_N.searchsorted(wanted))
        if place == len(self._hashes_N) or self._hashes_N[place] != wanted:
            return None
        return int(self._rows_N[place])

    def places(self, row: int, texts: Sequence[str]) -> list[int | None]:
        """Where the embeddings of a row's texts stand among all texts; None for one that was not taught."""
        first, last = int(self._first_text[row]), int(self._first_text[row + 1])
        digests = self._digests_C[first:last].tolist()
        return [first + digests.index(wanted) if (wanted := text_digest(text)) in digests else None for text in texts]

    def image(self, teacher: int, row: int, view: int) -> NDArray[np.float32]:
        """A view's embedding, float32 (1, D), of unit length.

        Raises:
            ValueError: it is damaged.
        """
        return _unit(self._images_RKD[teacher][row, view][None])

    def texts(self, teacher: int, places: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings of texts, float32 (B, D), of unit length.

        Raises:
            ValueError: one is damaged.
        """
        return _unit(self._texts_CD[teacher][places])


def _unit(bits_BD: NDArray[Any]) -> NDArray[np.float32]:
    """float32 of the bits of bfloat16, whose rounding is taken out of the length; few calls, as each takes as long."""
    values_BD = np.zeros(bits_BD.shape, "<f4")
    values_BD.view("<u2")[:, 1::2] = bits_BD  # the upper halves
    for row_D in values_BD:
        squared = float(row_D.dot(row_D))
        if not _SQUARES[0] < squared < _SQUARES[1]:
            raise ValueError("not of unit length")
        np.multiply(row_D, np.float32(squared**-0.5), out=row_D)
    return values_BD
