"""Blocks of samples for teachers: all views of their pictures, at each teacher's size, and all their captions.

A block knows nothing of ranks, processes or other blocks. It is read in threads of this process or in worker processes,
far from the models: a `ViewReader` pickles without them. A picture is decoded once for all its views.

Shapes: B samples of a block, R good ones, K views, S image size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipx.data.captions import CaptionReader, first_present
from clipx.data.decode import UndecodableError
from clipx.data.parallel import begun_ahead, in_processes
from clipx.data.sample_refs import SampleRef
from clipx.data.shards import BadSampleError, ShardReader
from clipx.data.teachers.views import view_seed
from clipx.data.transforms import EncodedPicture, TrainTransform

_LEAST_THREADS = 4  # some wait for a disk or a server while others decode
_AT_ONCE = 4  # samples that one thread takes: handing out each alone costs as much as reading it
_BLOCKS_AHEAD = 3


class Shape(NamedTuple):
    """In which form teachers see views."""

    image_size: int
    interpolation: str


class Block(NamedTuple):
    """Consecutive samples of a shard."""

    number: int
    """Of the block, among all that are read."""
    source: int
    shard: int
    """Index of the shard in its source."""
    name: str
    """Of the shard in the store."""
    samples: range
    """Their places in the shard."""
    first_id: int
    """Number of the shard's first sample among those of all shards."""


class Unread(NamedTuple):
    """A sample that cannot be taught."""

    key: str
    reason: str


@dataclass(frozen=True)
class ReadBlock:
    """The good samples of a block, in order."""

    block: Block
    keys: list[str]
    """Of all samples."""
    good: list[int]
    """Places of the good ones in the block."""
    unread: list[Unread]
    """The others."""
    texts: list[list[str]]
    """Of each good one."""
    pixels: Mapping[Shape, np.ndarray]
    """uint8 (R, K, S, S, 3)."""
    seeds_RK: np.ndarray
    """int64, of the views."""


class _Sample(NamedTuple):
    """What is stored of a sample."""

    key: str
    members: Mapping[str, bytes] | str
    """Or why they cannot be read."""


class _Views(NamedTuple):
    """What was made of a sample beside pixels."""

    texts: list[str]
    seeds: list[int]


@dataclass(frozen=True)
class SourceViews:
    """How samples of a source are read."""

    image_key: str
    captions: CaptionReader
    transforms: Mapping[Shape, TrainTransform]


class ViewReader:
    """Reads blocks.

    Args:
        shards: reads the samples.
        sources: in the order of those of `shards`.
        views: K.
        seed: the store's.
    """

    def __init__(self, shards: ShardReader, sources: Sequence[SourceViews], *, views: int, seed: int) -> None:
        self._shards = shards
        self._sources = sources
        self._views = views
        self._seed = seed

    def __call__(self, block: Block) -> ReadBlock:
        """A block, in a worker process."""
        torch.set_num_threads(1)
        self.expect(block)
        draft = _Draft(self, block)
        draft.read(slice(0, len(block.samples)), self.samples(block))
        return draft.finished()

    def expect(self, block: Block) -> None:
        """Has the samples of a block fetched, if they are remote."""
        if self._shards.remote_sources:
            self._shards.expect(_refs(block), until=block.number)

    def samples(self, block: Block) -> list[_Sample]:
        """The bytes of a block's samples; one thread at a time may call it."""
        return [self._sample(ref) for ref in _refs(block)]

    def _sample(self, ref: SampleRef) -> _Sample:
        key = self._shards.name(ref).key
        try:
            return _Sample(key, self._shards.read(ref))
        except BadSampleError as error:
            return _Sample(key, str(error))

    def blank(self, block: Block) -> dict[Shape, Tensor]:
        """Room for the views of a block, uint8 (B, K, S, S, 3) of each shape."""
        return {
            shape: torch.empty((len(block.samples), self._views, *(2 * [shape.image_size]), 3), dtype=torch.uint8)
            for shape in self._sources[block.source].transforms
        }

    def views(self, block: Block, sample: _Sample, *, out: Mapping[Shape, Tensor]) -> _Views | Unread:
        """Writes a sample's views, uint8 (K, S, S, 3) of each shape."""
        if isinstance(sample.members, str):
            return Unread(sample.key, sample.members)
        source = self._sources[block.source]
        seeds = [view_seed(self._seed, view, shard=block.name, key=sample.key) for view in range(self._views)]
        try:
            texts = source.captions.every_text(sample.members)
            data = first_present(sample.members, source.image_key)
            if data is None:
                return Unread(sample.key, f"no picture under {source.image_key!r}")
            picture = EncodedPicture(data)
            for shape, transform in source.transforms.items():
                for seed, view_SSC in zip(seeds, out[shape], strict=True):
                    transform.view(picture, seed=seed, out=view_SSC)
        except UndecodableError as error:
            return Unread(sample.key, str(error))
        return _Views(texts, seeds)


class _Draft:
    """A block that is being read, by several threads."""

    def __init__(self, reader: ViewReader, block: Block) -> None:
        self._reader, self._block = reader, block
        self._keys = [""] * len(block.samples)
        self._results: list[_Views | Unread | None] = [None] * len(block.samples)
        self._pixels = reader.blank(block)

    def read(self, places: slice, samples: Sequence[_Sample]) -> None:
        """Makes views of the samples of some places."""
        for place, sample in zip(range(places.start, places.stop), samples, strict=True):
            self._keys[place] = sample.key
            out = {shape: pixels[place] for shape, pixels in self._pixels.items()}
            self._results[place] = self._reader.views(self._block, sample, out=out)

    def finished(self) -> ReadBlock:
        """The block, of which every place was read."""
        good = [place for place, result in enumerate(self._results) if isinstance(result, _Views)]
        found = [result for result in self._results if isinstance(result, _Views)]
        whole = len(good) == len(self._results)
        return ReadBlock(
            self._block,
            keys=self._keys,
            good=good,
            unread=[result for result in self._results if isinstance(result, Unread)],
            texts=[views.texts for views in found],
            pixels={shape: (pixels if whole else pixels[good]).numpy() for shape, pixels in self._pixels.items()},
            seeds_RK=np.array([views.seeds for views in found], np.int64),
        )


def read_views(reader: ViewReader, blocks: Iterable[Block], *, workers: int, cores: int) -> Iterator[ReadBlock]:
    """Yields the blocks in their order; those that come next are read meanwhile.

    Args:
        workers: processes, from 2 on; else threads of this one read and decode.
        cores: of this rank; a thread for each.

    Raises:
        RunError: a process died, or the storage failed.
    """
    if workers >= 2:
        yield from in_processes(reader, blocks, workers=workers)
        return
    pool = ThreadPoolExecutor(max(_LEAST_THREADS, cores), initializer=torch.set_num_threads, initargs=(1,))

    def begin(block: Block) -> Callable[[], ReadBlock]:
        reader.expect(block)
        draft, samples = _Draft(reader, block), reader.samples(block)
        parts = [slice(at, min(at + _AT_ONCE, len(samples))) for at in range(0, len(samples), _AT_ONCE)]
        futures = [pool.submit(draft.read, part, samples[part]) for part in parts]
        return lambda: _read(draft, futures)

    try:
        yield from begun_ahead(begin, blocks, ahead=_BLOCKS_AHEAD)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(draft: _Draft, parts: Sequence[Future[None]]) -> ReadBlock:
    """The block, when all its parts have been read."""
    for part in parts:
        part.result()
    return draft.finished()


def _refs(block: Block) -> list[SampleRef]:
    return [
        SampleRef(block.source, block.shard, index, epoch=0, sample_id=block.first_id + index)
        for index in block.samples
    ]
