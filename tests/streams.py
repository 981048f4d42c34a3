"""Streams over small shards, for tests."""

import io
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from shard_files import png

from clipx.config.data import DataConfig
from clipx.data.build import open_reader
from clipx.data.decode import UndecodableError
from clipx.data.order import DataOrder
from clipx.data.stream import PairStream, rank_slots
from clipx.data.transforms import Decoding, TrainTransform

BAD = {
    3: {"png": b"no picture", "txt": b"a"},
    4: {"png": png(4)},
    5: {"txt": b"a"},
    11: {"png": png(11)[:-30], "txt": b"a"},
    12: {"png": png(12), "txt": b" "},
}
SEED = 7


class LetterTokenizer:
    """One id per letter."""

    vocab_size = 256
    context_length = 64

    def encode(self, texts):
        tokens = [torch.tensor(list(text.encode())) for text in texts]
        return torch.cat(tokens), torch.tensor([len(t) for t in tokens])


class Shift:
    """The picture's colours plus the seed, so that equal pictures with different seeds differ."""

    def __call__(self, data, *, seed, out):
        try:
            with Image.open(io.BytesIO(data)) as image:
                out.copy_(torch.from_numpy(np.array(image) + np.uint8(seed % 251)))
        except OSError as error:
            raise UndecodableError("no picture") from error
        return Decoding(by_pillow=seed % 7 == 0, deep=seed % 11 == 0)


def make_reader(index, order, *, transform=None, **options):
    data = DataConfig(train=["none.tar"], **{"image_key": "jpg;png", **options})
    reader = open_reader([index], order, data=data, image_size=8, tokenizer=LetterTokenizer())
    if transform is not None:
        (source,) = reader._samples.sources
        reader._samples.sources = [replace(source, transform=transform)]
    return reader


def make_stream(index, order, *, transform=None, data=None, rank=0, world_size=1, **options):
    transform = transform or Shift()
    size = 8 if isinstance(transform, TrainTransform) else 6
    slots = rank_slots(order, rank=rank, world_size=world_size)
    return PairStream(
        make_reader(index, order, transform=transform, **data or {}), slots=slots, image_size=size, **options
    )


def make_order(index, **options):
    return DataOrder([index.counts], **{"global_batch_size": 12, "seed": SEED, "window": 8, **options})


def two_epochs(order):
    (source,) = order.sources
    return -(-2 * source.lane_length * source.lanes // order.global_batch_size)
