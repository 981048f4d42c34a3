"""Opens every sample of shards with the loader's own decoders, says what is bad, and writes shards without that.

What is good here is what training takes: captions read as the source says, the picture decoded by the fast path or, if
that cannot, by Pillow. The shards themselves are never changed.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from clipx.config.data import AugmentConfig, Source
from clipx.data.decode import UndecodableError
from clipx.data.index.shard_list import expand_shards
from clipx.data.parallel import in_processes
from clipx.data.shard_writer import write_shard
from clipx.data.transforms import TrainTransform
from clipx.errors import InputError, RunError
from clipx.prepare.samples import Fault, StoredSampleReader, UnusableSampleError
from clipx.storage.files import RangeReader, open_ranges
from clipx.storage.tar import CutMemberError, NotTarError, TarScan, read_members, scan_tar

_SIDE = 32  # pixels that pictures are reduced to: it is the decoder that is tried


@dataclass(frozen=True)
class Problem:
    """Something that is bad in a shard."""

    shard: str
    key: str | None
    """The sample's; None means the problem is the shard's."""
    fault: Fault
    detail: str


@dataclass
class ShardHealth:
    """What is good and bad in one shard."""

    shard: str
    num_samples: int = 0
    num_good: int = 0
    num_by_pillow: int = 0
    """Good pictures that the fast decoder cannot read."""
    num_deep: int = 0
    """Good pictures whose grey values of more than 8 bits are scaled to 8."""
    problems: list[Problem] = field(default_factory=list)
    repaired: bool = False
    """Whether a new shard with the good samples was written."""

    def add(self, fault: Fault, detail: str, *, key: str | None = None) -> None:
        """Takes note of a problem."""
        self.problems.append(Problem(self.shard, key, fault, detail))


@dataclass(frozen=True)
class Health:
    """What is good and bad in all of them."""

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
    """Looks at every sample; `on_progress` gets (shards done, shards).

    The folder `repair` gets a shard with the good samples for each in which something is bad, of the same name.

    Raises:
        InputError: a shard that is not there; shards to be repaired into their own folder, or with equal names.
        RunError: a repaired shard cannot be written.
    """
    jobs = [(i, path) for i, source in enumerate(sources) for path in expand_shards(source.shards)]
    if repair is not None:
        _check_target(repair, [path for _, path in jobs])
    shards = []
    for shard in in_processes(_ShardCheck(tuple(sources), repair), jobs, workers=workers):
        shards.append(shard)
        if on_progress is not None:
            on_progress(len(shards), len(jobs))
    return Health(shards)


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
        source, path = job
        health = ShardHealth(path)
        try:
            with closing(open_ranges(path, sequential=True)) as file:
                scan = scan_tar(file)
                if scan.damage:
                    health.add("damaged shard", scan.damage)
                elif not scan.keys:
                    health.add("no samples", "nothing in it has a key and an extension")
                good = self._good_samples(file, scan, self._readers[source], health)
                if health.problems and good and self.repair is not None:
                    _write(self.repair / posixpath.basename(path), file, scan, good)
                    health.repaired = True
        except (NotTarError, OSError) as error:
            health.add("unreadable shard", str(error))
        return health

    @cached_property
    def _readers(self) -> list[StoredSampleReader]:
        return [StoredSampleReader(source) for source in self.sources]

    @cached_property
    def _transform(self) -> TrainTransform:
        return TrainTransform(_SIDE, AugmentConfig(), decode="fast")

    def _good_samples(
        self, file: RangeReader, scan: TarScan, reader: StoredSampleReader, health: ShardHealth
    ) -> list[int]:
        """The good samples; the others are added to `health`."""
        image_HWC = torch.empty((_SIDE, _SIDE, 3), dtype=torch.uint8)
        good = []
        for i in range(len(scan.keys)):
            try:
                _, image = reader.read(read_members(file, scan.members(i)), sample_id=0)
                decoding = self._transform(image, seed=0, out=image_HWC)
                health.num_by_pillow += decoding.by_pillow
                health.num_deep += decoding.deep
                good.append(i)
            except CutMemberError as error:
                health.add("cut sample", str(error), key=scan.key(i))
            except UndecodableError as error:
                health.add("unreadable picture", str(error), key=scan.key(i))
            except UnusableSampleError as error:
                health.add(error.fault, error.detail, key=scan.key(i))
        health.num_samples, health.num_good = len(scan.keys), len(good)
        return good


def _write(path: Path, file: RangeReader, scan: TarScan, good: Sequence[int]) -> None:
    """Writes a shard of the good samples.

    Raises:
        RunError: it cannot be written.
    """
    samples = ((scan.keys[i].decode("utf-8", "surrogateescape"), read_members(file, scan.members(i))) for i in good)
    try:
        write_shard(path, samples)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}; make room or choose another") from error
