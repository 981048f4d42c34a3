"""Tar files of samples: where each sample's members lie, by the headers alone (`tar_headers.py`).

A sample is a run of neighbouring members whose names are equal up to the first dot behind the last slash, as in
webdataset. Three things differ. Hidden files (`._p.jpg`, which macOS adds) are no members: webdataset takes those in
folders for samples of their own. A name that is there twice in a row begins a sample, where webdataset ends. And files
in a folder with a dot and a line break in its name are members, which webdataset passes over.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import sub
from typing import Literal, NamedTuple

from clipx.errors import some_names
from clipx.storage.files import RangeReader
from clipx.storage.tar_headers import DamageError, walk

MAX_SAMPLE_BYTES = 512 << 20
"""Of the members of a sample that are read: more is a fault of its header, or no picture that anybody trains on."""
MANY_MEMBERS = 20
"""Of a sample: of more it is probable that the first dot in their names was not meant as the key's end."""
KEYS_END_AT_DOTS = (
    "a sample's key ends at the first dot of a file's name; if each is a sample, name them without dots, or make "
    "shards with `clipx data make`"
)
_META = re.compile(rb"__[^/]*__(?:$|/)")  # webdataset's notation for what describes the shard
_NAMED = 10  # entries of each kind that are kept for messages
_EXPLAINED = 10_000  # samples whose links are kept
_MEND = "put files in their place"
_MENDS = {
    "hard link": "make the tar with `tar --hard-dereference`",
    "symbolic link": "make the tar with `tar --dereference`",
    "sparse file": "make the tar without --sparse",
    "continued file": "make one tar, without --multi-volume",
}


class CutMemberError(Exception):
    """The shard ends before one of a sample's members does; the message says how much is missing."""


class LargeSampleError(Exception):
    """A sample that is too large to be one; the message says how large."""


class Member(NamedTuple):
    """Where the content of one file of a sample lies in its shard."""

    extension: str
    offset: int
    size: int


class ShardFault(NamedTuple):
    """Something in a shard that costs samples, or that is not what a person thinks."""

    kind: Literal["damaged shard", "split samples", "links", "many members"]
    text: str
    """Goes on after `shard NAME`."""


@dataclass
class TarScan:
    """The samples of a tar in their order; a sample is a run of members with equal key and different extensions."""

    keys: list[bytes] = field(default_factory=list)
    first_member: "array[int]" = field(default_factory=lambda: array("q"))
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    extensions: "array[int]" = field(default_factory=lambda: array("I"))
    extension_ids: dict[bytes, int] = field(default_factory=dict)
    damage: str | None = None
    """What is wrong with the end of the file, or None."""
    links: "Counter[str]" = field(default_factory=Counter)
    """How many members are no files, by what they are instead (`hard link`, ...)."""
    link_names: dict[str, list[str]] = field(default_factory=dict)
    """Some of them."""
    linked: dict[bytes, str] = field(default_factory=dict)
    """Why a sample of a key lacks a member, of the first samples with links."""
    _seen: set[int] = field(default_factory=set)  # extensions of the last sample

    def key(self, index: int) -> str:
        """The name of sample `index`, with its folder inside the tar."""
        return self.keys[index].decode("utf-8", "backslashreplace")

    def members(self, index: int) -> list[Member]:
        """The files of sample `index` in the tar's order."""
        return [Member(self._extensions[self.extensions[i]], self.offsets[i], self.sizes[i]) for i in self._rows(index)]

    def _rows(self, index: int) -> range:
        stop = self.first_member[index + 1] if index + 1 < len(self.keys) else len(self.offsets)
        return range(self.first_member[index], stop)

    @cached_property
    def _extensions(self) -> list[str]:
        return [name.decode("utf-8", "backslashreplace") for name in self.extension_ids]

    def add(self, name: bytes, offset: int, size: int, kind: str | None = None) -> None:
        """Takes the next member; a name without key or extension makes no sample, and neither does a link.

        Args:
            kind: what it is instead of a file (`hard link`, ...).
        """
        folder, slash, base = name.rpartition(b"/")
        stem, dot, extension = base.partition(b".")
        if not stem or not dot or (name.startswith(b"__") and _is_meta(name)):
            return
        if kind is not None:
            self.links[kind] += 1
            shown = name.decode("utf-8", "backslashreplace")
            if self.links[kind] <= _NAMED:
                self.link_names.setdefault(kind, []).append(shown)
            if len(self.linked) < _EXPLAINED:
                reason = f"{shown} is a {kind}, which is no file; {_MENDS.get(kind, _MEND)}"
                self.linked.setdefault(folder + slash + stem, reason)
            return
        lower = extension.lower() if extension.isascii() else _lower(extension)
        extension_id = self.extension_ids.setdefault(lower, len(self.extension_ids))
        self._add(folder + slash + stem, extension_id, offset, size)

    def _add(self, key: bytes, extension_id: int, offset: int, size: int, *, begins: bool = False) -> None:
        if begins or not self.keys or self.keys[-1] != key or extension_id in self._seen:
            self.keys.append(key)
            self.first_member.append(len(self.offsets))
            self._seen.clear()
        self._seen.add(extension_id)
        self.offsets.append(offset)
        self.sizes.append(size)
        self.extensions.append(extension_id)

    @cached_property
    def _runs(self) -> list[list[int]]:
        """The samples that are pieces of one together: of one key, and no extension in two of them."""
        latest: dict[bytes, tuple[list[int], set[int]]] = {}
        groups: list[list[int]] = []
        for i, key in enumerate(self.keys):
            rows = self._rows(i)
            found = set(self.extensions[rows.start : rows.stop])
            group = latest.get(key)
            if group is None or not group[1].isdisjoint(found):
                latest[key] = group = ([], set())
                groups.append(group[0])
            group[0].append(i)
            group[1].update(found)
        return groups

    @cached_property
    def pieces(self) -> frozenset[int]:
        """The samples that are pieces: another one further on, or before, has the key and what this one lacks."""
        if len(set(self.keys)) == len(self.keys):
            return frozenset()
        return frozenset(i for group in self._runs if len(group) > 1 for i in group)

    def grouped(self) -> "TarScan":
        """The samples with all members of each key together, by their first members."""
        result = TarScan(extension_ids=self.extension_ids, damage=self.damage)
        for group in self._runs:
            for number, row in enumerate(row for i in group for row in self._rows(i)):
                columns = self.extensions[row], self.offsets[row], self.sizes[row]
                result._add(self.keys[group[0]], *columns, begins=number == 0)
        return result

    def faults(self) -> list[ShardFault]:
        """What is wrong with the shard, or odd."""
        faults = [] if self.damage is None else [ShardFault("damaged shard", self.damage)]
        if self.pieces:
            first = self.key(min(self.pieces))
            faults.append(
                ShardFault(
                    "split samples",
                    f"holds {len(self.pieces)} pieces of samples: the members of a sample do not stand together (of "
                    f"{first!r} first); make the tar with `tar --sort=name`, or mend it with `clipx data check "
                    "--repair DIR`",
                )
            )
        faults += [
            ShardFault(
                "links",
                f"holds {count} {kind + 's, which are no files' if count > 1 else kind + ', which is no file'} "
                f"({some_names(self.link_names[kind], count)}); {_MENDS.get(kind, _MEND)}",
            )
            for kind, count in self.links.items()
        ]
        if self.keys and len(self.offsets) > MANY_MEMBERS:
            faults += self._many_members()
        return faults

    def _many_members(self) -> list[ShardFault]:
        counts = list(map(sub, [*self.first_member[1:], len(self.offsets)], self.first_member))
        largest = counts.index(max(counts))
        if counts[largest] <= MANY_MEMBERS:
            return []
        rows = self._rows(largest)
        names = [self._extensions[i] for i in self.extensions[rows.start : rows.start + _NAMED]]
        return [
            ShardFault(
                "many members",
                f"has a sample {self.key(largest)!r} of {len(rows)} members ({some_names(names, len(rows))}): "
                f"{KEYS_END_AT_DOTS}",
            )
        ]


def scan_tar(file: RangeReader, *, joined: bool = False) -> TarScan:
    """Lists the samples of a tar, reading its headers only.

    A cut or damaged file gives every sample up to the damage, the one that it hits included (reading that one fails),
    and says so in `damage`.

    Args:
        joined: takes also the tars behind the end mark of the first.

    Raises:
        NotTarError: the file is none from its first byte on.
        OSError: it cannot be read.
    """
    scan = TarScan()
    try:
        for entry in walk(file, joined=joined):
            scan.add(*entry)
    except DamageError as error:
        scan.damage = str(error)
    return scan


def read_members(file: RangeReader, members: Sequence[Member]) -> dict[str, bytes]:
    """The contents of a sample's members by extension.

    Raises:
        CutMemberError: the shard ends inside one of them.
        LargeSampleError: they are larger than `MAX_SAMPLE_BYTES`.
        OSError: it cannot be read.
    """
    for extension, offset, size in members:
        if offset + size > file.size:
            raise CutMemberError(f"{min(size, offset + size - file.size)} bytes of its {extension} are missing")
    if not fits_memory(members):
        raise LargeSampleError(too_large(members))
    return {extension: file.read_at(offset, size) for extension, offset, size in members}


def fits_memory(members: Iterable[Member]) -> bool:
    """Whether members together are small enough to be read, `MAX_SAMPLE_BYTES`."""
    return sum(member.size for member in members) <= MAX_SAMPLE_BYTES


def too_large(members: Iterable[Member]) -> str:
    """What to say of members that do not fit."""
    size = sum(member.size for member in members)
    return f"its members have {size} bytes; a sample has at most {MAX_SAMPLE_BYTES}"


def is_sample_file(name: str) -> bool:
    """Whether a file of this name can be a member of a sample."""
    stem, dot, _ = name.rpartition("/")[2].partition(".")
    return bool(stem and dot) and not _is_meta(name.encode("utf-8", "surrogateescape"))


def _is_meta(name: bytes) -> bool:
    return _META.match(name) is not None or (b"/" not in name and name.startswith(b"__") and name.endswith(b"__"))


def _lower(extension: bytes) -> bytes:
    return extension.decode("utf-8", "surrogateescape").lower().encode("utf-8", "surrogateescape")
