"""Every sample once, in order: blocks that know nothing of ranks, and the samples of them that cannot be read."""

import time

import numpy as np
import pytest
import torch
from shard_files import png, write_shards
from streams import BAD, LetterTokenizer, make_order, make_reader

from clipx.data.columns import ColumnSpec
from clipx.data.in_order import batches_in_order, num_rounds
from clipx.data.index.shard_index import build_index
from clipx.data.shards import ShardReader
from clipx.errors import RunError

NUM_SAMPLES = 25  # two bad ones among the first block of four, one in the second, two in the third


class Twice:
    """The number of a sample, doubled."""

    columns = {"twice_BD": ColumnSpec(np.dtype(np.float32), (2,))}
    extensions = frozenset()

    def read(self, sample):
        return {"twice_BD": np.full((1, 2), 2 * sample.ref.sample_id, np.float32)}


class EndedTokenizer(LetterTokenizer):
    """One id per letter, and one for the end, as an empty text has one too."""

    def encode(self, texts):
        return super().encode([f"{text}." for text in texts])


class FirstPixels:
    """The picture itself."""

    def __call__(self, data, *, seed, out):
        from streams import Shift

        return Shift()(data, seed=0, out=out)


@pytest.fixture
def index(tmp_path):
    write_shards(tmp_path, [10, 0, 15], replaced=BAD)
    return build_index([str(tmp_path)])


def read(index, *, rank=0, world_size=1, batch_size=4, image_size=6):
    reader = make_reader(index, make_order(index), transform=FirstPixels())
    samples = reader._samples
    samples.column_readers = [Twice()]
    return list(
        batches_in_order(
            samples,
            tokenizer=EndedTokenizer(),
            counts=index.counts,
            image_size=image_size,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
        )
    )


def test_every_good_sample_comes_once_in_order_and_the_others_are_told(index):
    blocks = read(index)
    assert [number for block in blocks for number in block.numbers] == [i for i in range(NUM_SAMPLES) if i not in BAD]
    assert [block.batch.index for block in blocks] == list(range(7))
    assert {bad.sample_id: bad.reason for block in blocks for bad in block.batch.bad}.keys() == BAD.keys()
    for block in blocks:
        batch = block.batch
        assert tuple(batch.sample_id_I.tolist()) == block.numbers
        assert batch.images_IHWC[:, 0, 0, 0].tolist() == list(block.numbers)
        assert batch.columns["twice_BD"][:, 1].tolist() == [2.0 * number for number in block.numbers]
        texts = [bytes(text.tolist()).decode() for text in batch.tokens_T.split(batch.lengths_B.tolist())]
        assert texts == [f"picture {number}." for number in block.numbers]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_blocks_are_the_same_on_any_number_of_ranks_and_every_rank_has_as_many(index, world_size):
    alone = {block.batch.index: block for block in read(index)}
    shared = [read(index, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(blocks) for blocks in shared} == {num_rounds(NUM_SAMPLES, batch_size=4, world_size=world_size)}
    seen = set()
    for rank, blocks in enumerate(shared):
        for block in blocks:
            assert block.batch.index % world_size == rank
            if block.batch.index not in alone:
                assert block.numbers == ()
                continue
            seen.add(block.batch.index)
            expected = alone[block.batch.index]
            assert block.numbers == expected.numbers
            tensors, others = block.batch.tensors(), expected.batch.tensors()
            assert tensors.keys() == others.keys()
            assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert seen == alone.keys()


def test_block_without_a_good_sample_is_one_blank_row(tmp_path):
    write_shards(tmp_path, [12], replaced={i: {"png": b"no picture", "txt": b"a"} for i in range(3)})
    blank, good, *_ = read(build_index([str(tmp_path)]), batch_size=3)
    assert blank.numbers == ()
    assert [bad.sample_id for bad in blank.batch.bad] == [0, 1, 2]
    assert len(blank.batch) == 1
    assert blank.batch.sizes.keys() == good.batch.sizes.keys()
    tensors, others = blank.batch.tensors(), good.batch.tensors()
    assert {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in tensors.items()} == {
        name: (tensor.dtype, tensor.shape[1:]) for name, tensor in others.items()
    }
    assert not blank.batch.images_IHWC.any()
    assert not blank.batch.columns["twice_BD"].any()


def test_large_blocks_are_read_by_several_threads_and_keep_their_order(tmp_path):
    write_shards(tmp_path, [100], replaced={i: {"png": png(i), "txt": b"a"} for i in range(100)})
    (block, rest) = read(build_index([str(tmp_path)]), batch_size=60)
    assert block.numbers + rest.numbers == tuple(range(100))
    assert block.batch.images_IHWC[:, 5, 5, 0].tolist() == list(range(60))


def test_samples_are_read_in_their_order_however_long_each_takes_to_decode(tmp_path, monkeypatch):
    write_shards(tmp_path, [100], replaced={i: {"png": png(i), "txt": b"a"} for i in range(100)})
    order = []
    read_one = ShardReader.read

    def slow_read(self, ref):
        order.append(ref.sample_id)
        time.sleep(0.001)  # others get their turn
        return read_one(self, ref)

    monkeypatch.setattr(ShardReader, "read", slow_read)
    read(build_index([str(tmp_path)]), batch_size=60)
    assert order == list(range(100)), "groups of rows would be read again at each change"


def test_reading_leaves_the_threads_of_this_process_as_they_were(index):
    before = torch.get_num_threads()
    read(index)
    assert torch.get_num_threads() == before


def test_failing_storage_ends_the_reading(tmp_path):
    write_shards(tmp_path, [20])
    index = build_index([str(tmp_path)])
    blocks = read_lazily(index)
    next(blocks)
    with pytest.raises(RunError, match="reader failed"):
        list(blocks)


def read_lazily(index):
    reader = make_reader(index, make_order(index), transform=FirstPixels())
    reader._samples.column_readers = [Failing()]
    return batches_in_order(
        reader._samples, tokenizer=EndedTokenizer(), counts=index.counts, image_size=6, batch_size=4
    )


class Failing(Twice):
    """Fails at a late sample."""

    def read(self, sample):
        if sample.ref.sample_id == 18:
            raise RuntimeError("reader failed")
        return super().read(sample)
