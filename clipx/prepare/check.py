"""Opens every sample of shards with the loader's own decoders, says what is bad, and writes shards without that.

What is good here is what training takes: captions read as the source says, the picture decoded by the fast path or, if
that cannot, by Pillow. The shards themselves are never changed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from clipx.config.data import AugmentConfig, Source
from clipx.config.fit import FitConfig
from clipx.data.decode import UndecodableError
from clipx.data.index.shard_list import expand_shards
from clipx.data.parallel import in_processes
from clipx.data.transforms import Decoding, TrainTransform
from clipx.prepare.repair import RepairFolder
from clipx.prepare.samples import Fault, FitSampleReader, MemberReader, StoredSampleReader, UnusableSampleError
from clipx.storage.files import RangeReader, open_ranges
from clipx.storage.tar import CutMemberError, LargeSampleError, TarScan, read_members, scan_tar
from clipx.storage.tar_headers import NotTarError

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
    fit: FitConfig | None = None,
    repair: Path | None = None,
    workers: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Health:
    """Looks at every sample; `on_progress` gets (shards done, shards).

    With `fit`, the resolved config of a fit run, they are its samples, and read as such.

    The folder `repair` gets a shard with the good samples for each in which something is bad, of the same name: with
    those of all tars that were joined to one, and with the members of each sample together.

    Raises:
        InputError: a shard that is not there; shards to be repaired that have equal names, or whose folder is their own
            or holds somebody's shards.
        RunError: a repaired shard cannot be written.
    """
    jobs = [(i, path) for i, source in enumerate(sources) for path in expand_shards(source.shards)]
    folder = None if repair is None else RepairFolder(repair)
    if folder is not None:
        folder.require_free([path for _, path in jobs])
    shards = []
    for shard in in_processes(_ShardCheck(tuple(sources), folder, fit), jobs, workers=workers):
        shards.append(shard)
        if on_progress is not None:
            on_progress(len(shards), len(jobs))
    return Health(shards)


@dataclass(frozen=True)
class _ShardCheck:
    """What each process does."""

    sources: tuple[Source, ...]
    repair: RepairFolder | None
    fit: FitConfig | None

    def __call__(self, job: tuple[int, str]) -> ShardHealth:
        source, path = job
        health = ShardHealth(path)
        try:
            with closing(open_ranges(path, sequential=True)) as file:
                scan = scan_tar(file)
                for fault in scan.faults():
                    health.add(fault.kind, fault.text)
                if not (scan.keys or scan.damage):
                    health.add("no samples", "nothing in it has a key and an extension")
                good = self._good_samples(file, scan, self._readers[source], health)
                if health.problems and self.repair is not None:
                    health.repaired = self._write(path, file, scan, good, self._readers[source])
        except (NotTarError, OSError) as error:
            health.add("unreadable shard", str(error))
        return health

    @cached_property
    def _readers(self) -> list[MemberReader]:
        if self.fit is not None:
            return [FitSampleReader(self.fit)] * len(self.sources)
        return [StoredSampleReader(source) for source in self.sources]

    @cached_property
    def _transform(self) -> TrainTransform:
        return TrainTransform(_SIDE, AugmentConfig(), decode="fast")

    def _good_samples(self, file: RangeReader, scan: TarScan, reader: MemberReader, health: ShardHealth) -> list[int]:
        """The good samples; the others are added to `health`, pieces of samples only as the shard's problem."""
        good = []
        for i in range(len(scan.keys)):
            try:
                decoding = self._try(file, scan, i, reader)
                if decoding is not None:
                    health.num_by_pillow += decoding.by_pillow
                    health.num_deep += decoding.deep
                good.append(i)
            except UnusableSampleError as error:
                if reason := scan.linked.get(scan.keys[i]):
                    health.add("links", reason, key=scan.key(i))
                elif i not in scan.pieces:
                    health.add(error.fault, error.detail, key=scan.key(i))
        health.num_samples, health.num_good = len(scan.keys), len(good)
        return good

    def _try(self, file: RangeReader, scan: TarScan, sample: int, reader: MemberReader) -> Decoding | None:
        """Reads a sample as training does, and tells how its picture was decoded; None: it may lack one, and does.

        Raises:
            UnusableSampleError: training would not take it.
        """
        try:
            _, image = reader.read(read_members(file, scan.members(sample)), sample_id=0)
            if image is None:
                return None
            return self._transform(image, seed=0, out=torch.empty((_SIDE, _SIDE, 3), dtype=torch.uint8))
        except CutMemberError as error:
            raise UnusableSampleError("cut sample", str(error)) from error
        except LargeSampleError as error:
            raise UnusableSampleError("large sample", str(error)) from error
        except UndecodableError as error:
            raise UnusableSampleError("unreadable picture", str(error)) from error

    def _write(self, path: str, file: RangeReader, scan: TarScan, good: Sequence[int], reader: MemberReader) -> bool:
        """Writes a shard of the good samples, all that can be had; False if there are none.

        Raises:
            RunError: it cannot be written.
        """
        assert self.repair is not None
        if scan.damage or scan.pieces:
            whole = scan_tar(file, joined=True).grouped()
            if whole.keys != scan.keys:
                scan, good = whole, self._good_samples(file, whole, reader, ShardHealth(path))
        samples = ((scan.keys[i].decode("utf-8", "surrogateescape"), read_members(file, scan.members(i))) for i in good)
        if good:
            self.repair.write(path, samples)
        return bool(good)
