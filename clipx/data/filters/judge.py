"""Looks at the samples of a shard for a filter: their keys, captions, pictures' headers, json fields, parquet rows."""

import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from clipx.data.captions import alternatives, decode_captions
from clipx.data.decode import FORMATS, UndecodableError
from clipx.data.filters.conditions import CAPTION_FIELDS, IMAGE_FIELDS, Condition, Value
from clipx.data.filters.key_list import KeyList, hashed
from clipx.data.index.offsets import TarScan
from clipx.data.index.remote_folder import ASK
from clipx.errors import InputError
from clipx.storage.failures import mend
from clipx.storage.files import RangeReader, read_file

_HEADER_BYTES = 8192  # of a picture; where they do not hold its size (long EXIF data, WebP) all of it is read
_NO_CAPTION, _NO_PICTURE = "no caption", "no readable picture"


class Judge:
    """Applies a filter to shards; the arguments are those of `Filters`."""

    def __init__(
        self,
        where: Sequence[Condition],
        *,
        keys: KeyList | None,
        without_keys: KeyList | None,
        unique: str | None,
        caption_key: str,
        image_key: str,
    ) -> None:
        self._keys, self._without_keys, self._unique = keys, without_keys, unique
        self._caption_key, self._image_key = caption_key, image_key
        reasons = ["not among the keys"] if keys else []
        reasons += ["among the keys left out"] if without_keys else []
        for condition in where:
            reasons += [absent_reason(condition.field), condition.text]
        reasons += [_NO_CAPTION] if unique in ("caption", "pair") else []
        reasons += [_NO_PICTURE] if unique in ("image", "pair") else []
        reasons += [f"duplicate {unique}"] if unique else []
        self.reasons = tuple(dict.fromkeys(reasons))
        self._numbers = {reason: number for number, reason in enumerate(self.reasons, start=1)}
        if len(self.reasons) > 255:
            raise InputError(f"{len(where)} conditions have more than 255 reasons to leave a sample out; give fewer")
        self._tests = [(c.field, c.test(), self._numbers[absent_reason(c.field)], self._numbers[c.text]) for c in where]
        self._columns = tuple(c.field.partition(":")[2] for c in where if c.field.startswith("parquet:"))

    def judge(self, path: str, file: RangeReader, scan: TarScan) -> tuple[np.ndarray, np.ndarray | None]:
        """Reasons, uint8 (N,) with 0 for samples that pass, and hashes, uint64 (N,), where duplicates are looked for.

        Raises:
            OSError: the shard cannot be read.
            InputError: as `Filters.judge`.
        """
        reasons = self._by_key(posixpath.basename(path), scan)
        hashes = np.zeros(len(scan.keys), np.uint64) if self._unique else None
        rows = _parquet_rows(path, self._columns) if self._columns else {}
        names = [name.decode("utf-8", "backslashreplace") for name in scan.extension_ids]
        ends = [*scan.first_member[1:], len(scan.offsets)]
        for i in np.flatnonzero(reasons == 0).tolist():
            members = {
                names[scan.extensions[m]]: (scan.offsets[m], scan.sizes[m])
                for m in range(scan.first_member[i], ends[i])
            }
            key = scan.keys[i].decode("utf-8", "backslashreplace")
            sample = _Sample(file, members, self._caption_key, self._image_key, rows.get(posixpath.basename(key), {}))
            reasons[i] = self._reason(sample)
            if hashes is not None and not reasons[i]:
                reasons[i], hashes[i] = self._hash(sample)
        return reasons, hashes

    def _by_key(self, shard: str, scan: TarScan) -> np.ndarray:
        reasons = np.zeros(len(scan.keys), np.uint8)
        if self._keys is None and self._without_keys is None:
            return reasons
        prefix = shard.encode("utf-8", "surrogateescape") + b"/"
        spellings = [
            np.fromiter((hashed(start + key) for key in scan.keys), np.uint64, len(scan.keys))
            for start in (b"", prefix)
        ]
        if self._without_keys is not None:
            reasons[np.logical_or(*map(self._without_keys.holds, spellings))] = self._numbers["among the keys left out"]
        if self._keys is not None:
            reasons[~np.logical_or(*map(self._keys.holds, spellings))] = self._numbers["not among the keys"]
        return reasons

    def _reason(self, sample: "_Sample") -> int:
        """0, or the number of the first condition's reason that does not hold."""
        for field, test, absent, failed in self._tests:
            values = sample.values(field)
            if not values:
                return absent
            if not all(map(test, values)):
                return failed
        return 0

    def _hash(self, sample: "_Sample") -> tuple[int, int]:
        """(0, hash), or the number of what is missing."""
        parts = []
        if self._unique in ("caption", "pair"):
            if not sample.captions:
                return self._numbers[_NO_CAPTION], 0
            parts += [caption.encode() for caption in sample.captions]
        if self._unique in ("image", "pair"):
            picture = sample.picture()
            if not picture:
                return self._numbers[_NO_PICTURE], 0
            parts.append(picture)
        return 0, hashed(b"".join(len(part).to_bytes(8, "little") + part for part in parts))


def absent_reason(field: str) -> str:
    """Why a sample is left out that lacks a field."""
    if field in CAPTION_FIELDS:
        return _NO_CAPTION
    return _NO_PICTURE if field in IMAGE_FIELDS else f"no {field}"


@dataclass
class _Sample:
    """One sample, of which only that is read what is asked for."""

    file: RangeReader
    members: Mapping[str, tuple[int, int]]
    """(offset, size) by extension."""
    caption_key: str
    image_key: str
    row: Mapping[str, Any]
    """Of the parquet file."""

    def values(self, field: str) -> Sequence[Value]:
        """What a condition looks at, none where the sample lacks it."""
        match field.partition(":"):
            case "json", ":", name:
                return _single(self.record.get(name))
            case "parquet", ":", name:
                return _single(self.row.get(name))
            case "caption.words", _, _:
                return [len(caption.split()) for caption in self.captions]
            case "caption.characters", _, _:
                return [len(caption.strip()) for caption in self.captions]
            case name, _, _:
                return () if self.size is None else (_measure(name, *self.size),)

    @cached_property
    def captions(self) -> list[str]:
        """All of them; none where one is broken."""
        wanted = {extension for extension, _ in alternatives(self.caption_key)} & self.members.keys()
        try:
            return decode_captions({extension: self._read(extension) for extension in wanted}, self.caption_key)
        except UndecodableError:
            return []

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Width and height as the picture's header says, in pixels."""
        member = self._picture_member()
        if member is None:
            return None
        offset, length = member
        for num_bytes in sorted({min(_HEADER_BYTES, length), length}):
            size = _picture_size(self.file.read_at(offset, num_bytes))
            if size is not None:
                return size
        return None

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The json member."""
        if "json" not in self.members:
            return {}
        try:
            record = json.loads(self._read("json"))
        except (ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}

    def picture(self) -> bytes:
        """The bytes of the picture."""
        member = self._picture_member()
        return b"" if member is None else self.file.read_at(*member)

    def _picture_member(self) -> tuple[int, int] | None:
        return next((self.members[key] for key, _ in alternatives(self.image_key) if key in self.members), None)

    def _read(self, extension: str) -> bytes:
        return self.file.read_at(*self.members[extension])


def _picture_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a picture, None where `data` is not enough of one."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except MemoryError:
        raise
    except Exception:  # Pillow's plugins raise whatever malformed bytes led them to
        return None
    return (width, height) if width and height else None


def _measure(field: str, width: int, height: int) -> float:
    match field:
        case "width":
            return width
        case "height":
            return height
        case "min_side":
            return min(width, height)
        case _:
            return max(width, height) / min(width, height)


def _single(value: object) -> Sequence[Value]:
    """A text, number or truth; lists, objects and null are none, and so is what is no number (NaN)."""
    if isinstance(value, str | int | float) and value == value:  # noqa: PLR0124
        return (value,)
    return ()


def _parquet_rows(shard: str, columns: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """The rows of NNNNN.parquet beside a shard by their `key`, as img2dataset writes them."""
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError("conditions on parquet: fields need pyarrow; pip install 'clipx[parquet]'") from error
    path = shard.removesuffix(".tar") + ".parquet"
    wanted = ["key", *dict.fromkeys(columns)]
    try:
        file = parquet.ParquetFile(io.BytesIO(read_file(path, remote=ASK)))
        missing = [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            known = ", ".join(file.schema_arrow.names)
            raise InputError(f"{path} has no column {missing[0]!r}; it has {known}")
        table = file.read(columns=wanted).to_pydict()
    except OSError as error:
        raise InputError(
            f"{path}, which conditions on parquet: need, cannot be read: {error}; {mend(error)}"
        ) from error
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is no parquet file ({error}); write it again") from error
    rows = zip(*(table[name] for name in wanted[1:]), strict=True)
    return {str(key): dict(zip(wanted[1:], row, strict=True)) for key, row in zip(table["key"], rows, strict=True)}
