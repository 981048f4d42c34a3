"""Opens every sample of shards with the loader's own decoders, says what is bad, and writes shards without that.

What is good here is what training takes: captions read as the source says, the picture decoded by the fast path or,
where that cannot, by Pillow. The shards themselves are never changed.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from clipx.config.data import AugmentConfig, Source
from clipx.data.captions import CaptionReader, first_present
from clipx.data.decode import UndecodableError
from clipx.data.index.offsets import NotTarError, TarScan, scan_tar
from clipx.data.index.shard_list import expand_shards
from clipx.data.shard_writer import write_shard
from clipx.data.transforms import TrainTransform
from clipx.errors import InputError, RunError
from clipx.prepare.pool import in_processes
from clipx.storage.files import RangeReader, open_ranges

Fault = Literal[
    "unreadable shard", "damaged shard", "no samples", "cut sample", "no caption", "no picture", "unreadable picture"
]
_SIDE = 32  # pixels that pictures are reduced to: it is the decoder that is tried


@dataclass(frozen=True)
class Problem:
    """Something that is bad in a shard."""

    shard: str
    key: str | None
    """Of the sample; None: it is about the shard."""
    fault: Fault
    detail: str


@dataclass
class ShardHealth:
    """What was found in one shard."""

    shard: str
    num_samples: int = 0
    num_good: int = 0
    num_by_pillow: int = 0
    """Good pictures that the fast decoder cannot read."""
    problems: list[Problem] = field(default_factory=list)
    repaired: bool = False
    """Whether a new shard with the good samples was written."""


@dataclass(frozen=True)
class Health:
    """What was found in all of them."""

    shards: list[ShardHealth]

    @property
    def problems(self) -> list[Problem]:
        """All that is bad, in the order of the shards."""
        return [problem for shard in self.shards for problem in shard.problems]

    def by_fault(self) -> dict[str, int]:
        """Problems of each kind, the most frequent first."""
        return dict(Counter[str](problem.fault for problem in self.problems).most_common())


def check_shards(
    sources: Sequence[Source],
    *,
    repair: Path | None = None,
    workers: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Health:
    """Looks at every sample.

    Args:
        sources: with the keys of pictures and captions.
        repair: folder for new shards, of the names of those in which something is bad, with their good samples.
        workers: processes.
        on_progress: called with (shards done, shards).

    Raises:
        InputError: a shard that is not there; shards to be repaired into their own folder, or with equal names.
        RunError: a repaired shard cannot be written.
    """
    jobs = [(source, path) for source, each in enumerate(sources) for path in expand_shards(each.shards)]
    if repair is not None:
        _check_target(repair, [path for _, path in jobs])
    found = []
    for shard in in_processes(_ShardCheck(tuple(sources), repair), jobs, workers=workers):
        found.append(shard)
        if on_progress is not None:
            on_progress(len(found), len(jobs))
    return Health(found)


def _check_target(folder: Path, shards: Sequence[str]) -> None:
    if any(Path(path).resolve().parent == folder.resolve() for path in shards):
        raise InputError(f"--repair {folder} is where the shards lie, and they stay as they are; choose another folder")
    name, count = Counter(map(posixpath.basename, shards)).most_common(1)[0]
    if count > 1:
        raise InputError(f"--repair {folder}: {count} of the shards are called {name}; repair one folder at a time")


@dataclass(frozen=True)
class _ShardCheck:
    """What each process does."""

    sources: tuple[Source, ...]
    repair: Path | None

    def __call__(self, job: tuple[int, str]) -> ShardHealth:
        number, path = job
        health = ShardHealth(path)

        def add(fault: Fault, detail: str) -> None:
            health.problems.append(Problem(path, None, fault, detail))

        try:
            file = open_ranges(path, sequential=True)
        except OSError as error:
            add("unreadable shard", str(error))
            return health
        try:
            scan = scan_tar(file)
            if scan.damage:
                add("damaged shard", scan.damage)
            elif not scan.keys:
                add("no samples", "nothing in it has a key and an extension")
            good = self._look(file, scan, self._decoders[number], health)
        except (NotTarError, OSError) as error:
            add("unreadable shard", str(error))
        else:
            if health.problems and good and self.repair is not None:
                self._write(self.repair, file, scan, good, health)
        finally:
            file.close()
        return health

    @cached_property
    def _decoders(self) -> list["_Decoder"]:
        return [_Decoder(source) for source in self.sources]

    def _look(self, file: RangeReader, scan: TarScan, decoder: "_Decoder", health: ShardHealth) -> list[int]:
        """The good samples; the others are told to `health`."""
        good = []
        for index, key in enumerate(scan.keys):
            try:
                health.num_by_pillow += decoder.read(dict(_members(file, scan, index)))
                good.append(index)
            except _BadError as error:
                name = key.decode("utf-8", "backslashreplace")
                health.problems.append(Problem(health.shard, name, error.fault, error.detail))
        health.num_samples, health.num_good = len(scan.keys), len(good)
        return good

    def _write(self, folder: Path, file: RangeReader, scan: TarScan, good: Sequence[int], health: ShardHealth) -> None:
        path = folder / posixpath.basename(health.shard)
        samples = (
            (scan.keys[index].decode("utf-8", "surrogateescape"), dict(_members(file, scan, index))) for index in good
        )
        try:
            write_shard(path, samples)
        except OSError as error:
            raise RunError(
                f"{path} cannot be written: {error.strerror or error}; make room or choose another"
            ) from error
        health.repaired = True


class _BadError(Exception):
    """A sample that training would not take."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(fault, detail)
        self.fault, self.detail = fault, detail


class _Decoder:
    """Reads samples of a source as the loader does."""

    def __init__(self, source: Source) -> None:
        self._image_key = source.image_key
        self._captions = CaptionReader(source, captions_per_image=1, seed=0)
        self._transform = TrainTransform(_SIDE, AugmentConfig(), decode="fast")
        self._picture_HWC = torch.empty((_SIDE, _SIDE, 3), dtype=torch.uint8)

    def read(self, fields: dict[str, bytes]) -> bool:
        """Whether Pillow had to decode the picture.

        Raises:
            _BadError: caption or picture are absent or cannot be read.
        """
        try:
            self._captions.read(fields, epoch=0, sample_id=0)
        except UndecodableError as error:
            raise _BadError("no caption", str(error)) from error
        data = first_present(fields, self._image_key)
        if data is None:
            raise _BadError("no picture", f"nothing under {self._image_key!r}; members: {', '.join(sorted(fields))}")
        try:
            return self._transform(data, seed=0, out=self._picture_HWC)
        except UndecodableError as error:
            raise _BadError("unreadable picture", str(error)) from error


def _members(file: RangeReader, scan: TarScan, index: int) -> Iterator[tuple[str, bytes]]:
    """Extension and content of each file of a sample.

    Raises:
        _BadError: the shard ends before one of them does.
    """
    names = [name.decode("utf-8", "backslashreplace") for name in scan.extension_ids]
    last = scan.first_member[index + 1] if index + 1 < len(scan.keys) else len(scan.offsets)
    for member in range(scan.first_member[index], last):
        data = file.read_at(scan.offsets[member], scan.sizes[member])
        if len(data) < scan.sizes[member]:
            raise _BadError(
                "cut sample",
                f"{scan.sizes[member] - len(data)} bytes of its {names[scan.extensions[member]]} are missing",
            )
        yield names[scan.extensions[member]], data
