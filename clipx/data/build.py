"""Config to data: the order of a run's samples, and what reads them."""

from collections.abc import Sequence
from typing import Literal

from clipx.config.data import DataConfig, sources
from clipx.config.model import Interpolation
from clipx.config.schema import RunConfig
from clipx.data.captions import CaptionReader
from clipx.data.columns import ColumnReader, check_columns
from clipx.data.index.shard_index import ShardIndex
from clipx.data.order import DataOrder
from clipx.data.samples import BatchReader, SampleReader, SourceReader
from clipx.data.shards import ShardReader
from clipx.data.tokenizer import Tokenizer
from clipx.data.transforms import TrainTransform


def build_order(
    config: RunConfig,
    indexes: Sequence[ShardIndex],
    *,
    lanes: int | Literal["auto"] | None = None,
    shuffle_window: int | Literal["auto"] | None = None,
) -> DataOrder:
    """The data order of a run; `lanes` and `shuffle_window` are the numbers that it began with, None the config's.

    Raises:
        InputError: too few samples for a batch, or lanes that do not divide it (`DataOrder`).
    """
    described, data = sources(config.data), config.data
    return DataOrder(
        [index.counts for index in indexes],
        weights=[source.weight for source in described],
        names=[source.name for source in described],
        global_batch_size=config.global_batch_size // data.captions_per_image,
        seed=config.seed,
        lanes=data.lanes if lanes is None else lanes,
        window=data.shuffle_window if shuffle_window is None else shuffle_window,
        allow_repeats=data.allow_repeats,
    )


def open_reader(
    indexes: Sequence[ShardIndex],
    order: DataOrder,
    *,
    data: DataConfig,
    image_size: int,
    tokenizer: Tokenizer,
    interpolation: Interpolation = "bicubic",
    column_readers: Sequence[ColumnReader] = (),
) -> BatchReader:
    """The reader of parts of batches that the config describes.

    Args:
        indexes: of the shards of each source.
        order: of the samples.
        data: what is read, and how.
        image_size: pixels of an image's side.
        tokenizer: of the captions.
        interpolation: with which crops of images are resized.
        column_readers: of what an objective wants of every sample besides.

    Raises:
        InputError: files of class names or templates, or a folder for copies of shards, that cannot be used.
    """
    described = sources(data)
    readers = [
        SourceReader(
            name=source.name,
            image_key=source.image_key,
            caption_key=source.caption_key if isinstance(source.caption_key, str) else ";".join(source.caption_key),
            captions=CaptionReader(source, captions_per_image=data.captions_per_image, seed=order.seed),
            transform=TrainTransform(image_size, source.augment, decode=data.decode, interpolation=interpolation),
        )
        for source in described
    ]
    check_columns(column_readers)
    further = [reader.extensions for reader in column_readers]
    extensions = [reader.extensions.union(*further) for reader in readers]
    shards = ShardReader(indexes, extensions=extensions, remote=data.remote, cache=data.cache)
    return BatchReader(
        order,
        SampleReader(shards, readers, seed=order.seed, column_readers=column_readers),
        tokenizer,
        captions_per_image=data.captions_per_image,
        groups=any(source.equal_captions == "ignored" for source in described),
        read_ahead_batches=data.remote.read_ahead_batches,
    )
