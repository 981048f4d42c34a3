"""Has teachers embed all views of all pictures, and all captions, of shards: makes a store of `clipx.data.teachers`.

The file of a shard is made of blocks of samples that are each one forward pass of their own. Both are fixed by the
shards, so no byte depends on how many ranks share the work, or on where one was killed. Ranks take shards in turn;
after each they tell each other how it went, so that an error on one ends all. While a teacher computes, the next blocks
are read.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from torch.distributed import ProcessGroup

from clipx.config.data import DataConfig, Decode, Source, device_part, sources
from clipx.config.model import Interpolation
from clipx.data.captions import CaptionReader, alternatives
from clipx.data.device_augment import DeviceAugment
from clipx.data.index.shard_index import ShardIndex, build_index
from clipx.data.shards import ShardReader
from clipx.data.teachers.description import Description, Teacher
from clipx.data.teachers.fits import reading_of
from clipx.data.teachers.names import distinct_names
from clipx.data.transforms import TrainTransform
from clipx.distributed.collectives import gather_objects, raise_on_all_ranks, rank, world_size
from clipx.errors import InputError
from clipx.models.evaluating import evaluating
from clipx.prepare.teach_folder import Report, Request, StoreFolder, WantedShard
from clipx.prepare.teach_reading import Block, Shape, SourceViews, ViewReader, read_views
from clipx.prepare.teach_rows import Precision, Rows, TeacherModel, embedded, joined
from clipx.pretrained.threads import ON_DEVICE, cores_of_rank, side_by_side
from clipx.printable import redact


@dataclass(frozen=True, kw_only=True)
class TeachOptions:
    """How teachers are asked; all but `workers` decides the bytes."""

    views: int = 5
    """K, of each picture."""
    seed: int = 0
    """Of the views."""
    precision: Precision = "fp32"
    """In which teachers compute."""
    batch_size: int = 128
    """Pictures of a forward pass, all views counted."""
    workers: int = 0
    """Processes that read and decode, from 2 on."""


class Taught(NamedTuple):
    """What was made, by all ranks."""

    description: Description
    num_new: int
    """Samples that this start taught; the others were there."""
    seconds: float
    """That it took."""


def teach(
    data: DataConfig,
    teachers: Sequence[TeacherModel],
    out: str,
    *,
    options: TeachOptions | None = None,
    group: ProcessGroup | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Taught:
    """Makes a store, or goes on where an earlier call was stopped.

    Args:
        data: which shards, and how training reads and augments them.
        teachers: at least one, each with another name.
        out: the folder; new, empty, or of the same request. All ranks see it.
        options: how.
        group: the ranks that share the work.
        on_progress: gets the samples that are done, and all.

    Raises:
        InputError: the folder is remote or of something else, texts go beyond what stands in shards, no shards, no
            sample is any good, or ranks have other weights.
        RunError: a worker process died, a shard cannot be read, embeddings are not finite, the disk is full, or ranks
            do not see one folder.
    """
    began, options = time.monotonic(), options or TeachOptions()
    folder = StoreFolder(out)
    with raise_on_all_ranks(group):
        found = (
            [] if rank(group) else [build_index(s.shards, index_dir=s.index, remote=data.remote) for s in sources(data)]
        )
    indexes: list[ShardIndex] = gather_objects(found, group)[0]
    with raise_on_all_ranks(group):
        request = _request(data, indexes, teachers, options)
    if len({tuple(other.teachers) for other in gather_objects(request, group)}) > 1:
        raise InputError("ranks loaded other weights; name a checkpoint or an export, not a run that still trains")
    with ExitStack() as stack:
        complete = None
        with raise_on_all_ranks(group):
            if rank(group) == 0:
                complete = stack.enter_context(folder.claimed(request))
        description: Description | None = gather_objects(complete, group)[0]
        num_new = 0
        if description is None:
            _require_one_folder(folder, group)
            job = _Job(data, indexes, teachers, folder, request=request, options=options, group=group)
            num_new = job.teach(on_progress)
            description = job.finish()
    return Taught(description, num_new, time.monotonic() - began)


def _request(
    data: DataConfig, indexes: Sequence[ShardIndex], teachers: Sequence[TeacherModel], options: TeachOptions
) -> Request:
    described = sources(data)
    places = [(number, place) for number, index in enumerate(indexes) for place in range(len(index.paths))]
    names = distinct_names(indexes[number].paths[place] for number, place in places)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"shard {twice[0]} is read by two sources; name it in one of them")
    return Request(
        views=options.views,
        seed=options.seed,
        decode=data.decode,
        precision=options.precision,
        batch_size=options.batch_size,
        teachers=tuple(map(_described, teachers)),
        readings=tuple(reading_of(source, decode=data.decode, seed=options.seed) for source in described),
        shards=tuple(
            WantedShard(
                name=name, reading=number, samples=int(indexes[number].counts[place]), filter=indexes[number].filter
            )
            for name, (number, place) in zip(names, places, strict=True)
        ),
    )


def _described(teacher: TeacherModel) -> Teacher:
    pretrained = teacher.pretrained
    return Teacher(
        name=teacher.name,
        model=redact(teacher.model),
        fingerprint=pretrained.fingerprint,
        dim=pretrained.config.embed_dim,
        logit_scale=pretrained.logit_scale,
        image_size=teacher.shape.image_size,
        interpolation=teacher.shape.interpolation,
    )


def _require_one_folder(folder: StoreFolder, group: ProcessGroup | None) -> None:
    """Raises RunError if a rank sees another folder than rank 0, which has claimed it."""
    mark = ""
    with raise_on_all_ranks(group):
        if rank(group) == 0:
            mark = folder.mark()
    mark = gather_objects(mark, group)[0]
    with raise_on_all_ranks(group):
        folder.require_mark(mark)


class _Job:
    """What one rank does for a folder that is not complete."""

    def __init__(
        self,
        data: DataConfig,
        indexes: Sequence[ShardIndex],
        teachers: Sequence[TeacherModel],
        folder: StoreFolder,
        *,
        request: Request,
        options: TeachOptions,
        group: ProcessGroup | None,
    ) -> None:
        self._data, self._indexes, self._teachers, self._folder = data, indexes, teachers, folder
        self._request, self._options, self._group = request, options, group
        self._cores = cores_of_rank(group)
        self._reports: dict[int, Report] = {}
        """Of the shards that this rank taught; of rank 0 also of those that were done. They go to rank 0 by message:
        a network file system may show a machine only later what another one wrote."""
        self._places = [(number, place) for number, index in enumerate(indexes) for place in range(len(index.paths))]

    def teach(self, on_progress: Callable[[int, int], None] | None) -> int:
        """Teaches the shards that are not done; returns the samples that all ranks taught."""
        group, ranks, samples = self._group, world_size(self._group), [shard.samples for shard in self._request.shards]
        with raise_on_all_ranks(group):
            if rank(group) == 0:
                self._reports = dict(self._done())
        done_before = gather_objects(list(self._reports), group)[0]
        missing = sorted(set(range(len(samples))).difference(done_before))
        mine = missing[rank(group) :: ranks]
        total, done = sum(samples), sum(samples) - sum(samples[number] for number in missing)
        num_new = 0
        with closing(self._rows(mine)) as rows:
            for turn in range(-(-len(missing) // ranks)):
                in_turn = sum(samples[number] for number in missing[turn * ranks :][:ranks])
                with raise_on_all_ranks(group):
                    if turn < len(mine):
                        share = in_turn / max(1, samples[mine[turn]])
                        show = partial(_show, on_progress, done=done, share=share, total=total)
                        self._reports[mine[turn]] = self._write(mine[turn], rows, show)
                done += in_turn
                num_new += in_turn
        return num_new

    def finish(self) -> Description:
        """Completes the folder."""
        reports: dict[int, Report] = {}
        for found in gather_objects(self._reports, self._group):
            reports |= found
        known = [reports[number] for number in range(len(self._places))]
        description = None
        with raise_on_all_ranks(self._group):
            if not any(report.taught for report in known):
                key, reason = next(row for report in known for row in report.left_out)
                raise InputError(f"no sample could be taught; the first is {key}: {reason}; look at the shards")
            if rank(self._group) == 0:
                description = self._folder.complete(self._request, known)
        complete: Description = gather_objects(description, self._group)[0]
        return complete

    def _done(self) -> Iterator[tuple[int, Report]]:
        """The shards that have their report, and are still the ones that it is about."""
        for number, (source, place) in enumerate(self._places):
            report = self._folder.report(number)
            if report is not None and int(self._indexes[source].sizes[place]) in (0, report.bytes):
                yield number, report

    def _write(self, number: int, rows: Iterator[Rows], show: Callable[[int], None]) -> Report:
        """Takes the rows of a shard's blocks, and writes them; returns what became of it."""
        taken: list[Rows] = []
        done, samples = 0, self._request.shards[number].samples
        while done < samples:
            taken.append(next(rows))
            done += len(taken[-1].block.keys)
            show(done)
        source, place = self._places[number]
        size = self._indexes[source].offsets(place, remote=self._data.remote).shard.size
        content = joined(taken, teachers=self._teachers, views=self._request.views, size=size)
        self._folder.write(number, content.parts, content.report)
        return content.report

    def _blocks(self, numbers: Sequence[int]) -> Iterator[Block]:
        size, count = max(1, self._request.batch_size // self._request.views), 0
        first_ids = [0, *accumulate(shard.samples for shard in self._request.shards)]
        for number in numbers:
            shard, (source, place) = self._request.shards[number], self._places[number]
            for start in range(0, shard.samples, size):
                samples = range(start, min(start + size, shard.samples))
                yield Block(count, source, place, shard.name, samples, first_ids[number])
                count += 1

    def _rows(self, numbers: Sequence[int]) -> Generator[Rows]:
        """The embeddings of all blocks of shards, in their order."""
        device = self._teachers[0].pretrained.device
        threads = self._cores if device.type == "cpu" else ON_DEVICE
        augment = sources(self._data)[0].augment  # what the device computes is the same in all sources
        colours = DeviceAugment(augment) if augment is not None and any(device_part(augment)) else None
        embed = partial(embedded, self._teachers, colours=colours, precision=self._options.precision)
        read = read_views(self._reader(), self._blocks(numbers), workers=self._options.workers, cores=self._cores)
        with ExitStack() as stack:
            for teacher in self._teachers:  # before there are threads, which would switch it under each other
                stack.enter_context(evaluating(teacher.pretrained.model))
            yield from side_by_side(embed, read, device=device, threads=threads)

    def _reader(self) -> ViewReader:
        described, data, request = sources(self._data), self._data, self._request
        shapes = dict.fromkeys(teacher.shape for teacher in self._teachers)
        readers = [
            SourceViews(
                source.image_key,
                CaptionReader(source, captions_per_image=1, seed=0),
                {shape: _transform(source, shape, data.decode) for shape in shapes},
            )
            for source in described
        ]
        extensions = [
            reader.captions.extensions | {extension for extension, _ in alternatives(reader.image_key)}
            for reader in readers
        ]
        shards = ShardReader(self._indexes, extensions=extensions, remote=data.remote, cache=data.cache)
        return ViewReader(shards, readers, views=request.views, seed=request.seed)


def _transform(source: Source, shape: Shape, decode: Decode) -> TrainTransform:
    """What training does to a picture, at a teacher's size."""
    assert source.augment is not None, "pretraining augments"
    interpolation: Interpolation = "bilinear" if shape.interpolation == "bilinear" else "bicubic"
    return TrainTransform(shape.image_size, source.augment, decode=decode, interpolation=interpolation)


def _show(on_progress: Callable[[int, int], None] | None, rows: int, *, done: int, share: float, total: int) -> None:
    """Tells how far all ranks are, by this one's samples of a shard: `share` as many are done for each of them."""
    if on_progress is not None:
        on_progress(done + round(rows * share), total)
