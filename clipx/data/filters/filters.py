"""Which samples an index counts: judged once, when a shard is indexed, so that a run never skips one.

A filter is kept as `FILTER_FILE` (and its lists of keys beside it) in the folder of its index; shards that are added
later are judged by it. `judge.py` looks at the samples.
"""

import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal

from clipx.data.filters.conditions import CAPTION_FIELDS, IMAGE_FIELDS, Condition
from clipx.data.filters.judge import Judge
from clipx.data.filters.key_list import KeyList
from clipx.data.index.offsets import TarScan, Verdict
from clipx.data.index.remote_folder import ASK
from clipx.errors import InputError
from clipx.storage.failures import mend
from clipx.storage.files import RangeReader, read_file, write_file

FILTER_FILE = "clipx-filter.json"
Unique = Literal["image", "caption", "pair"]
_UNIQUE: tuple[Unique, ...] = ("image", "caption", "pair")
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Filters:
    """Conditions that all must hold, lists of keys, and whether exact duplicates stay."""

    where: tuple[Condition, ...]
    keys: KeyList | None
    """Only these."""
    without_keys: KeyList | None
    """None of these."""
    unique: Unique | None
    """Of samples whose bytes of this are equal the first stays."""
    caption_key: str
    image_key: str

    def __reduce__(self) -> tuple[object, ...]:
        fields = (self.where, self.keys, self.without_keys, self.unique, self.caption_key, self.image_key)
        return Filters, fields  # without what is computed from them, in which there are functions

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
    ) -> "Filters":
        """Reads what a person wrote.

        Args:
            where: conditions: caption.words, caption.characters, width, height, min_side, aspect (longer over shorter
                side), json:NAME, parquet:NAME; with >=, <=, >, <, ==, !=, or `in` and values joined by commas.
            keys: text file with one key (or SHARD.tar/KEY) per line: only these.
            without_keys: the same: none of these.
            unique: image, caption or pair.
            caption_key: as data.caption_key. Of several captions all must pass.
            image_key: as data.image_key.

        Raises:
            InputError: a condition that is none, a list that cannot be read, an unknown `unique`, or nothing to filter.
        """
        chosen = next((name for name in _UNIQUE if name == unique), None)
        if unique is not None and chosen is None:
            raise InputError(f"unique={unique}: give one of {', '.join(_UNIQUE)}")
        filters = cls(
            where=tuple(Condition.parse(text) for text in where),
            keys=None if keys is None else KeyList.from_file(keys),
            without_keys=None if without_keys is None else KeyList.from_file(without_keys),
            unique=chosen,
            caption_key=caption_key,
            image_key=image_key,
        )
        if not (where or keys or without_keys or unique):
            raise InputError("a filter without condition, keys or unique leaves nothing out; give one of them")
        return filters

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
        """Why a sample can be left out; the n-th, from 1 on, is number n of a `Verdict`. That of duplicates is last."""
        return self._judge.reasons

    def judge(self, path: str, file: RangeReader, scan: TarScan) -> Verdict:
        """Judges the samples of a shard; duplicates are left to `mark_duplicates`, which sees all shards.

        Raises:
            OSError: the shard cannot be read.
            InputError: a parquet file that a condition needs is absent, or lacks its column.
        """
        reasons, hashes = self._judge.judge(path, file, scan)
        return Verdict(self.id, reasons, hashes)

    def save(self, folder: str) -> None:
        """Keeps the filter in the folder of its index.

        Raises:
            OSError: it cannot be written.
        """
        for keys in filter(None, (self.keys, self.without_keys)):
            write_file(posixpath.join(folder, _keys_file(keys.digest)), keys.to_bytes())
        content = {
            "version": _VERSION,
            "where": [condition.text for condition in self.where],
            "keys": self.keys and self.keys.digest,
            "without_keys": self.without_keys and self.without_keys.digest,
            "unique": self.unique,
            "caption_key": self.caption_key,
            "image_key": self.image_key,
        }
        write_file(posixpath.join(folder, FILTER_FILE), json.dumps(content, indent=1).encode())

    @classmethod
    def load(cls, folder: str) -> "Filters | None":
        """The filter of an index, None where it has none.

        Raises:
            InputError: it cannot be read, or is not as `save` leaves it.
        """
        path = posixpath.join(folder, FILTER_FILE)
        try:
            content = json.loads(read_file(path, remote=ASK))
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}")
            return cls(
                where=tuple(Condition.parse(text) for text in content["where"]),
                keys=_load_keys(folder, content["keys"]),
                without_keys=_load_keys(folder, content["without_keys"]),
                unique=content["unique"],
                caption_key=content["caption_key"],
                image_key=content["image_key"],
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}; {mend(error)}") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}); make the index again in a new folder") from error

    @cached_property
    def _judge(self) -> Judge:
        return Judge(
            self.where,
            keys=self.keys,
            without_keys=self.without_keys,
            unique=self.unique,
            caption_key=self.caption_key,
            image_key=self.image_key,
        )


def filter_id(text: str) -> int:
    """A number for the text of a filter, 0 for none."""
    return int.from_bytes(sha256(text.encode()).digest()[:7], "little") + 1 if text else 0


def _load_keys(folder: str, digest: str | None) -> KeyList | None:
    if digest is None:
        return None
    path = posixpath.join(folder, _keys_file(digest))
    try:
        return KeyList.from_bytes(read_file(path, remote=ASK))
    except FileNotFoundError as error:
        raise ValueError(f"its list {path} is gone") from error


def _keys_file(digest: str) -> str:
    return f"clipx-keys-{digest}.npy"
