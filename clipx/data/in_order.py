"""Every sample of a source's shards once, in their order: what evaluating, predicting and keeping features read.

The samples are cut into blocks of `batch_size`, of which the ranks take turns: block i is that of rank i mod W. A block
is a batch of its own and knows nothing of the ranks, so what a model makes of it has the same bits for every W.
Sharded models need all ranks in every forward pass: every rank gets as many batches as any other. Where a rank has no
block left, or no sample of its block can be read, the batch is one blank row.

Shapes: I rows of a batch, S image size.
"""

import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipx.data.columns import blank_columns
from clipx.data.parallel import num_cores
from clipx.data.sample_refs import SampleRef
from clipx.data.samples import PartialBatch, SampleContent, SampleReader, columns_of, counts_of, join_parts
from clipx.data.shards import BadSampleError, ShardReader
from clipx.data.tokenizer import Tokenizer
from clipx.types import BadSample, Batch

_THREADS = max(4, num_cores())  # some wait for a disk or a server while others decode
_AT_ONCE = 8  # samples that one thread takes: handing out each alone costs as much as reading it
_BLOCKS_AHEAD = 3


@dataclass(frozen=True)
class InOrder:
    """A block of samples."""

    batch: Batch
    """The good ones in their order; one blank row if there is none. `index` is the block's number, `bad` the others."""
    numbers: tuple[int, ...]
    """Of the good ones, counted from 0 in all shards laid end to end: the first rows of what a model makes of the batch
    are theirs."""


class Block(NamedTuple):
    """Consecutive samples."""

    number: int
    """Of the block."""
    samples: range
    """Their numbers."""


def num_rounds(num_samples: int, *, batch_size: int, world_size: int) -> int:
    """How many batches every rank gets of so many samples."""
    return -(-num_samples // (batch_size * world_size))


def own_blocks(num_samples: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Block]:
    """A rank's blocks; those beyond the last sample are empty."""
    rounds = num_rounds(num_samples, batch_size=batch_size, world_size=world_size)
    numbers = range(rank, rounds * world_size, world_size)
    return [Block(number, block_samples(number, num_samples, batch_size=batch_size)) for number in numbers]


def block_samples(number: int, num_samples: int, *, batch_size: int) -> range:
    """The numbers of a block's samples."""
    return range(min(number * batch_size, num_samples), min((number + 1) * batch_size, num_samples))


def batches_in_order(
    samples: SampleReader,
    *,
    tokenizer: Tokenizer,
    counts: Sequence[int] | np.ndarray,
    image_size: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[InOrder]:
    """Yields this rank's blocks, `num_rounds` of them; the next ones are read meanwhile, by threads.

    Args:
        samples: reads them, all as of epoch 0; of one source.
        tokenizer: of their texts.
        counts: of each shard, how many samples it has.
        image_size: S; 0 where pictures are not read.
        batch_size: samples of a block.
        rank: this one.
        world_size: W.

    Raises:
        RunError: the storage failed, or a column is not what its reader promised.
    """
    blocks = own_blocks(int(np.sum(counts)), batch_size=batch_size, rank=rank, world_size=world_size)
    return read_in_order(samples, tokenizer=tokenizer, counts=counts, image_size=image_size, blocks=blocks)


def read_in_order(
    samples: SampleReader,
    *,
    tokenizer: Tokenizer,
    counts: Sequence[int] | np.ndarray,
    image_size: int,
    blocks: Iterable[Block],
) -> Iterator[InOrder]:
    """Yields these blocks; for the rest see `batches_in_order`."""
    reader = _BlockReader(samples, tokenizer=tokenizer, image_size=image_size, ends=np.cumsum(counts))
    rest = iter(blocks)
    pending: deque[_Begun] = deque()
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(_THREADS, initializer=torch.set_num_threads, initargs=(1,))
    try:
        while True:
            pending.extend(reader.begin(block, pool) for block in islice(rest, _BLOCKS_AHEAD - len(pending)))
            if not pending:
                return
            yield reader.joined(pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)
        reader.end()
        torch.set_num_threads(threads)  # this thread's has not changed, but that of threads to come has


_Read = SampleContent | BadSample


class _Begun(NamedTuple):
    """A block that is being read."""

    number: int
    refs: Sequence[SampleRef]
    images_ISSC: Tensor
    """Filled meanwhile."""
    parts: Sequence[Future[list[_Read]]]


class _BlockReader:
    """Reads blocks, in several threads at once; `ends` are those of the shards."""

    def __init__(self, samples: SampleReader, *, tokenizer: Tokenizer, image_size: int, ends: np.ndarray) -> None:
        self._samples = samples
        self._tokenizer = tokenizer
        self._image_size = image_size
        self._ends = ends
        self._turns = threading.Condition()  # its lock is held while anything is read
        self._num_parts, self._next_part = 0, 0

    def begin(self, block: Block, pool: ThreadPoolExecutor) -> _Begun:
        """Has a block read."""
        refs, shards = self._refs(block.samples), self._samples.shards
        if isinstance(shards, ShardReader) and shards.remote_sources:
            with self._turns:
                shards.expect(refs, until=block.number)
        images_ISSC = self._blank_images(len(refs))
        parts = [slice(start, start + _AT_ONCE) for start in range(0, len(refs), _AT_ONCE)]
        futures = [
            pool.submit(self._some, number, refs[part], images_ISSC[part])
            for number, part in enumerate(parts, self._num_parts)
        ]
        self._num_parts += len(parts)
        return _Begun(block.number, refs, images_ISSC, futures)

    def end(self) -> None:
        """Frees what was fetched and not read."""
        shards = self._samples.shards
        if isinstance(shards, ShardReader) and shards.remote_sources:
            shards.forget(sys.maxsize)

    def _refs(self, numbers: range) -> list[SampleRef]:
        ends = self._ends
        shards = np.searchsorted(ends, np.array(numbers), side="right").tolist()  # skips empty shards
        firsts = [int(ends[shard - 1]) if shard else 0 for shard in shards]
        return [
            SampleRef(source=0, shard=shard, index=number - first, epoch=0, sample_id=number)
            for number, shard, first in zip(numbers, shards, firsts, strict=True)
        ]

    def _some(self, part: int, refs: Sequence[SampleRef], images_ISSC: Tensor) -> list[_Read]:
        # In turns: rows that can only be read in groups would be read many times at a border by threads that mix. The
        # pool begins parts in their order, so whoever a part waits for has begun.
        with self._turns:
            self._turns.wait_for(lambda: self._next_part == part)
            try:
                members = [self._members(ref) for ref in refs]
            finally:
                self._next_part += 1
                self._turns.notify_all()
        return [self._decoded(*sample) for sample in zip(refs, members, images_ISSC, strict=True)]

    def _members(self, ref: SampleRef) -> Mapping[str, bytes] | BadSample:
        try:
            return self._samples.shards.read(ref)
        except BadSampleError as error:
            return self._samples.bad(ref, str(error))

    def _decoded(self, ref: SampleRef, members: Mapping[str, bytes] | BadSample, out: Tensor) -> _Read:
        if isinstance(members, BadSample):
            return members
        try:
            return self._samples.decoded(ref, members, out=out)
        except BadSampleError as error:
            with self._turns:
                return self._samples.bad(ref, str(error))

    def joined(self, begun: _Begun) -> InOrder:
        """The block's batch."""
        results = [result for part in begun.parts for result in part.result()]
        good = [row for row, result in enumerate(results) if isinstance(result, SampleContent)]
        contents = [result for result in results if isinstance(result, SampleContent)]
        refs, images_ISSC = [begun.refs[row] for row in good], begun.images_ISSC
        if not good:
            images_ISSC, columns = self._blank_images(1), self._blank_columns()
        else:
            columns = columns_of(refs, contents, tokenizer=self._tokenizer, first_slot=0)
            images_ISSC = images_ISSC if len(good) == len(results) else images_ISSC[good]
        part = PartialBatch(
            index=begun.number,
            columns=columns,
            bad=tuple(result for result in results if isinstance(result, BadSample)),
            counts=counts_of(contents),
            read_wait_s=0.0,
        )
        batch = join_parts([part], images_ISSC, captions_per_image=1)
        return InOrder(batch, numbers=tuple(ref.sample_id for ref in refs))

    def _blank_images(self, count: int) -> Tensor:
        return torch.zeros((count, self._image_size, self._image_size, 3), dtype=torch.uint8)

    def _blank_columns(self) -> dict[str, np.ndarray]:
        """One row of nothing."""
        tokens_T, lengths_B = self._tokenizer.encode([""])
        sizes = {"I": 1, "B": 1, "T": len(tokens_T)}
        zero_I = np.zeros(1, dtype=np.int64)
        further = blank_columns(self._samples.column_readers, sizes)
        return {
            "tokens_T": tokens_T.numpy(),
            "lengths_B": lengths_B.numpy(),
            "sample_id_I": zero_I - 1,
            "slot_I": zero_I,
            "source_I": zero_I,
            "augment_seed_I": zero_I,
            **{name: value.numpy() for name, value in further.items()},
        }
