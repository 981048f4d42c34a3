"""Samples kept in arrays: the batches of the reader of shards, without reading."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fit_runs import NUM_TRAIN, sample, tiny_fit
from shard_files import write_shards
from streams import SEED, LetterTokenizer

from clipx.data.build import open_fit_samples, open_reader
from clipx.data.columns import Wanted
from clipx.data.fit_columns import FitColumns, JoinedText
from clipx.data.in_order import batches_in_order, num_rounds
from clipx.data.index.shard_index import build_index
from clipx.data.kept_samples import KeptBatchReader, KeptSamples
from clipx.data.modality_dropout import ModalityDropout
from clipx.data.order import DataOrder
from clipx.errors import RunError
from clipx.types import BadSample

BAD = {4: {"json": b"no json"}, 5: {"json": b"[]"}, 41: {"json": b"{}", "png": b"no picture"}}
DIM = 3


class Tokenizer(LetterTokenizer):
    """Gives an empty text a token, too."""

    def encode(self, texts):
        return super().encode([f"{text}." for text in texts])


def make(tmp_path, *, bad=BAD, probability=0.4):
    """Config, index, order, and what is kept: column `vectors_BD` holds the sample's number."""
    write_shards(tmp_path / "train", [60, NUM_TRAIN - 60], replaced={i: sample(i) for i in range(NUM_TRAIN)} | bad)
    index = build_index([str(tmp_path / "train")])
    config = tiny_fit(tmp_path / "run", tmp_path, f"absent.probability={probability}", f"seed={SEED}")
    shards = list(index.paths)
    data = replace(config.data, train_shards=shards, val_shards=shards, num_train=NUM_TRAIN)
    config = replace(config, data=data)
    order = DataOrder([index.counts], global_batch_size=24, seed=SEED, window=8)
    return config, index, order, kept_of(config, index)


def kept_of(config, index):
    blocks = list(in_shards(config, index, batch_size=16))
    names = blocks[0].batch.columns
    columns = {name: np.zeros((NUM_TRAIN, *names[name].shape[1:]), names[name].numpy().dtype) for name in names}
    for block in blocks:
        for name, values in columns.items():
            values[list(block.numbers)] = block.batch.columns[name][: len(block.numbers)].numpy()
    columns["vectors_BD"] = np.repeat(np.arange(NUM_TRAIN, dtype=np.float32)[:, None], DIM, axis=1)
    return KeptSamples(
        columns=columns,
        bad={bad.sample_id: bad for block in blocks for bad in block.batch.bad},
        blank_tokens=np.array([1, 2]),
    )


def in_shards(config, index, **options):
    samples = open_fit_samples(config, index)
    size = config.model.image.image_size
    return batches_in_order(samples, tokenizer=Tokenizer(), counts=index.counts, image_size=size, **options)


def from_shards(config, index, order):
    wanted = Wanted(
        columns=(FitColumns(config, training=True),), texts=JoinedText(config.text_columns), images="optional"
    )
    return open_reader(
        [index], order, data=config.data, image_size=32, tokenizer=Tokenizer(), image=config.model.image, wanted=wanted
    )


def dropout(config):
    return ModalityDropout(seed=config.seed, modalities=config.modalities, probability=config.absent.probability)


def read(reader, index, slots, *, size):
    return reader.read(index, slots, out=torch.zeros(len(slots), size, size, 3, dtype=torch.uint8))


@pytest.mark.parametrize("slots", [range(24), range(7, 19)])
def test_parts_are_those_of_the_reader_of_shards_for_epochs(tmp_path, slots):
    config, index, order, kept = make(tmp_path)
    expected, reader = from_shards(config, index, order), KeptBatchReader(order, kept, dropout=dropout(config))
    hidden = 0
    for number in range(12):  # three epochs
        theirs, ours = read(expected, number, slots, size=32), read(reader, number, slots, size=0)
        for name in theirs.columns.keys() - {"tokens_T", "lengths_B"}:
            np.testing.assert_array_equal(ours.columns[name], theirs.columns[name], err_msg=name)
            assert ours.columns[name].dtype == theirs.columns[name].dtype
        assert ours.bad == theirs.bad
        assert ours.counts.keys() == theirs.counts.keys()
        ids = ours.columns["sample_id_I"]
        assert ours.columns["vectors_BD"][:, 1].tolist() == ids.tolist()
        hidden += int((kept.columns["presence_BM"][ids] - ours.columns["presence_BM"]).sum())
    assert hidden > 12
    assert kept.bad.keys() == BAD.keys()


def test_what_is_hidden_leaves_the_arrays_as_they_are(tmp_path):
    config, _, order, kept = make(tmp_path)
    before = {name: values.copy() for name, values in kept.columns.items()}
    reader = KeptBatchReader(order, kept, dropout=dropout(config))
    for number in range(4):
        read(reader, number, range(24), size=0)
    for name, values in before.items():
        np.testing.assert_array_equal(kept.columns[name], values)


@pytest.mark.parametrize("world_size", [1, 3])
def test_blocks_in_order_are_those_of_shards(tmp_path, world_size):
    config, index, _, kept = make(tmp_path, bad={i: {"json": b"no json"} for i in range(16, 24)})
    for rank in range(world_size):
        theirs = list(in_shards(config, index, batch_size=8, rank=rank, world_size=world_size))
        ours = list(kept.in_order(batch_size=8, rank=rank, world_size=world_size))
        assert len(ours) == len(theirs) == num_rounds(NUM_TRAIN, batch_size=8, world_size=world_size)
        for left, right in zip(ours, theirs, strict=True):
            assert (left.numbers, left.batch.index, left.batch.bad) == (
                right.numbers,
                right.batch.index,
                right.batch.bad,
            )
            for name, values in right.batch.columns.items():
                torch.testing.assert_close(left.batch.columns[name], values, rtol=0, atol=0, equal_nan=True)
            assert left.batch.sizes["B"] == right.batch.sizes["B"]


def test_nothing_good_within_reach_is_an_error_that_names_the_first(tmp_path):
    config, _, order, kept = make(tmp_path, bad={})
    bad = {number: BadSample("train", "a.tar", f"{number}", "broken", number) for number in range(NUM_TRAIN)}
    reader = KeptBatchReader(order, replace(kept, bad=bad), dropout=dropout(config))
    with pytest.raises(RunError, match=r"none of \d+ samples in a row is readable, from \d+ of .*\(broken\)"):
        read(reader, 0, range(24), size=0)
