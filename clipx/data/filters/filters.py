"""Which samples an index counts: evaluated once, when a shard is indexed, so that a run never skips one.

A filter is kept as `FILTER_FILE` (and its lists of keys beside it) in the folder of its index, and evaluates shards
that are added later.
"""

import json
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from clipx.config.paths import expand_home
from clipx.data.filters import FilterResult, filter_id
from clipx.data.filters.conditions import CAPTION_FIELDS, IMAGE_FIELDS, Condition, Value
from clipx.data.filters.key_list import KeyList, hashed
from clipx.data.filters.sample import NO_CAPTION, NO_IMAGE, FilterSample, absent_reason, parquet_rows
from clipx.errors import InputError
from clipx.storage.failures import hint
from clipx.storage.files import RangeReader, read_file, write_file, write_new_file
from clipx.storage.remote import ASK
from clipx.storage.tar import TarScan

FILTER_FILE = "clipx-filter.json"
Unique = Literal["image", "caption", "pair"]
_UNIQUE: tuple[Unique, ...] = ("image", "caption", "pair")
_VERSION = 1
_NOT_AMONG, _AMONG = "not among the keys", "among the keys left out"
_MAX_REASONS = 255  # they are stored in a byte


@dataclass(frozen=True, eq=False)
class SampleFilter:
    """Conditions that all must hold, lists of keys, and whether exact duplicates stay."""

    where: tuple[Condition, ...]
    keys: KeyList | None
    """Only these."""
    without_keys: KeyList | None
    """None of these."""
    unique: Unique | None
    """Whose bytes must differ: of samples with equal ones the first stays."""
    caption_key: str
    image_key: str

    def __reduce__(self) -> tuple[object, ...]:
        fields = (self.where, self.keys, self.without_keys, self.unique, self.caption_key, self.image_key)
        return SampleFilter, fields  # without what is computed from them, in which there are functions

    @classmethod
    def parse(
        cls,
        where: Sequence[str],
        *,
        keys: Path | None = None,
        without_keys: Path | None = None,
        unique: str | None = None,
        caption_key: str = "txt",
        image_key: str = "jpg;jpeg;png;webp",
    ) -> "SampleFilter":
        """Reads what a person wrote.

        Args:
            where: conditions: caption.words, caption.characters, width, height, min_side, aspect (longer over shorter
                side), json:NAME, parquet:NAME; with >=, <=, >, <, ==, !=, or `in` and values joined by commas.
            keys: text file with one key (or SHARD.tar/KEY) per line: only these.
            without_keys: text file of the same form: none of these.
            unique: image, caption or pair.
            caption_key: like data.caption_key. Of several captions all must pass.
            image_key: like data.image_key.

        Raises:
            InputError: a condition that is none, a list that cannot be read, an unknown `unique`, or nothing to filter.
        """
        chosen = next((name for name in _UNIQUE if name == unique), None)
        if unique is not None and chosen is None:
            raise InputError(f"unique={unique}: give one of {', '.join(_UNIQUE)}")
        if not (where or keys or without_keys or unique):
            raise InputError("a filter without condition, keys or unique leaves nothing out; give one of them")
        return cls(
            where=tuple(map(Condition.parse, where)),
            keys=None if keys is None else KeyList.from_file(Path(expand_home(str(keys)))),
            without_keys=None if without_keys is None else KeyList.from_file(Path(expand_home(str(without_keys)))),
            unique=chosen,
            caption_key=caption_key,
            image_key=image_key,
        )

    @cached_property
    def text(self) -> str:
        """All that decides what passes, in one line."""
        fields = {condition.field for condition in self.where}
        parts = [f"keys of list {self.keys.digest}"] if self.keys else []
        parts += [f"not keys of list {self.without_keys.digest}"] if self.without_keys else []
        parts += [condition.text for condition in self.where]
        parts += [f"unique {self.unique}"] if self.unique else []
        if self.unique in ("caption", "pair") or fields & {*CAPTION_FIELDS}:
            parts.append(f"caption_key {self.caption_key}")
        if self.unique in ("image", "pair") or fields & {*IMAGE_FIELDS}:
            parts.append(f"image_key {self.image_key}")
        return ", ".join(parts)

    @property
    def id(self) -> int:
        """A number for `text`, not 0."""
        return filter_id(self.text)

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """Why a sample can be left out, in the order of their numbers, from 1 on; duplicates come last.

        Raises:
            InputError: more than 255.
        """
        reasons = [_NOT_AMONG] if self.keys else []
        reasons += [_AMONG] if self.without_keys else []
        for condition in self.where:
            reasons += [absent_reason(condition.field), condition.text]
        reasons += [NO_CAPTION] if self.unique in ("caption", "pair") else []
        reasons += [NO_IMAGE] if self.unique in ("image", "pair") else []
        reasons += [f"duplicate {self.unique}"] if self.unique else []
        unique_reasons = tuple(dict.fromkeys(reasons))
        if len(unique_reasons) > _MAX_REASONS:
            too_many = f"{len(self.where)} conditions have more than {_MAX_REASONS} reasons to leave a sample out"
            raise InputError(f"{too_many}; give fewer")
        return unique_reasons

    def evaluate(self, path: str, file: RangeReader, scan: TarScan) -> FilterResult:
        """Decides which samples of a shard pass; duplicates are left to `mark_duplicates`, which sees all shards.

        Raises:
            OSError: the shard cannot be read.
            InputError: a parquet file that a condition needs is absent, or lacks its column.
        """
        reasons = self._reasons_by_key(posixpath.basename(path), scan)
        hashes = np.zeros(len(scan.keys), np.uint64) if self.unique else None
        columns = [name for source, _, name in (c.field.partition(":") for c in self.where) if source == "parquet"]
        rows = parquet_rows(path, columns) if columns else {}
        for i in np.flatnonzero(reasons == 0).tolist():
            members = {member.extension: member for member in scan.members(i)}
            row = rows.get(posixpath.basename(scan.key(i)), {})
            sample = FilterSample(file, members, self.caption_key, self.image_key, row)
            reasons[i] = self._reason(sample)
            if hashes is not None and not reasons[i]:
                reasons[i], hashes[i] = self._hash(sample)
        return FilterResult(self.id, reasons, hashes)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {reason: number for number, reason in enumerate(self.reasons, start=1)}

    @cached_property
    def _tests(self) -> list[tuple[Condition, Callable[[Value], bool], int, int]]:
        """Each condition, its test, and the numbers of its reasons."""
        return [(c, c.test(), self._numbers[absent_reason(c.field)], self._numbers[c.text]) for c in self.where]

    def _reasons_by_key(self, shard: str, scan: TarScan) -> np.ndarray:
        reasons = np.zeros(len(scan.keys), np.uint8)
        if self.keys is None and self.without_keys is None:
            return reasons
        prefix = shard.encode("utf-8", "surrogateescape") + b"/"
        spellings = [
            np.fromiter((hashed(start + key) for key in scan.keys), np.uint64, len(scan.keys))
            for start in (b"", prefix)
        ]
        if self.without_keys is not None:
            reasons[np.logical_or(*map(self.without_keys.holds, spellings))] = self._numbers[_AMONG]
        if self.keys is not None:
            reasons[~np.logical_or(*map(self.keys.holds, spellings))] = self._numbers[_NOT_AMONG]
        return reasons

    def _reason(self, sample: FilterSample) -> int:
        """The number of the reason of the first condition that does not hold, 0 if all hold."""
        for condition, test, absent, failed in self._tests:
            values = sample.values(condition.field)
            if not values:
                return absent
            if not all(map(test, values)):
                return failed
        return 0

    def _hash(self, sample: FilterSample) -> tuple[int, int]:
        """(0, hash), or (the number of the reason, 0) if a part is missing."""
        parts = []
        if self.unique in ("caption", "pair"):
            if not sample.captions:
                return self._numbers[NO_CAPTION], 0
            parts += [caption.encode() for caption in sample.captions]
        if self.unique in ("image", "pair"):
            if not (image := sample.image()):
                return self._numbers[NO_IMAGE], 0
            parts.append(image)
        return 0, hashed(b"".join(len(part).to_bytes(8, "little") + part for part in parts))

    def save(self, folder: str) -> None:
        """Keeps the filter in the folder of its index.

        Raises:
            InputError: it cannot be written, or another filter was put there meanwhile.
        """
        content = {
            "version": _VERSION,
            "where": [condition.text for condition in self.where],
            "keys": self.keys and self.keys.digest,
            "without_keys": self.without_keys and self.without_keys.digest,
            "unique": self.unique,
            "caption_key": self.caption_key,
            "image_key": self.image_key,
        }
        try:
            for keys in filter(None, (self.keys, self.without_keys)):
                write_file(posixpath.join(folder, _keys_file(keys.digest)), keys.to_bytes())
            new = write_new_file(posixpath.join(folder, FILTER_FILE), json.dumps(content, indent=1).encode())
        except OSError as error:
            raise InputError(
                f"the index in {folder} cannot be written: {error.strerror or error}; make room there or choose "
                "another folder"
            ) from error
        if not new:
            self.require_same(SampleFilter.load(folder), folder)

    def require_same(self, stored: "SampleFilter | None", folder: str) -> None:
        """Checks that the index in `folder`, which has the filter `stored` (None: none yet), is one of this filter.

        Raises:
            InputError: it is not.
        """
        if stored is not None and stored.text != self.text:
            raise InputError(
                f"the index in {folder} has the filter {stored.text!r}, not {self.text!r}; choose another folder"
            )

    @classmethod
    def load(cls, folder: str) -> "SampleFilter | None":
        """The filter of an index, None if it has none.

        Raises:
            InputError: it cannot be read, or is not as `save` leaves it.
        """
        path = posixpath.join(folder, FILTER_FILE)
        try:
            content = json.loads(read_file(path, remote=ASK))
            if content.pop("version") != _VERSION:
                raise ValueError("of another version")
            where = tuple(map(Condition.parse, content.pop("where")))
            keys, without_keys = (_load_keys(folder, content.pop(name)) for name in ("keys", "without_keys"))
            return cls(where=where, keys=keys, without_keys=without_keys, **content)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}; {hint(error)}") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}); make the index again in a new folder") from error


def _load_keys(folder: str, digest: str | None) -> KeyList | None:
    if digest is None:
        return None
    path = posixpath.join(folder, _keys_file(digest))
    try:
        keys = KeyList.from_bytes(read_file(path, remote=ASK))
    except FileNotFoundError as error:
        raise ValueError(f"its list {path} is gone") from error
    if keys.digest != digest:
        raise ValueError(f"its list {path} is another one")
    return keys


def _keys_file(digest: str) -> str:
    return f"clipx-keys-{digest}.npy"
