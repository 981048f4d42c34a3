"""Config to data: the order of a run's samples, and what reads them."""

from collections.abc import Sequence
from typing import Literal

from clipx.config.data import AugmentConfig, DataConfig, Decode, Source, sources
from clipx.config.fit import FitConfig
from clipx.config.fit_data import FitDataConfig
from clipx.config.model import ImageConfig, TimmImageConfig
from clipx.config.schema import JobConfig
from clipx.data.captions import CaptionReader
from clipx.data.columns import Wanted, check_columns
from clipx.data.fit_columns import FitColumns, FitTargets, JoinedText
from clipx.data.index.shard_index import ShardIndex
from clipx.data.order import DataOrder
from clipx.data.samples import BatchReader, SampleReader, SourceReader, Views
from clipx.data.shards import ShardReader
from clipx.data.teachers import Teachers
from clipx.data.teachers.fits import require_fits
from clipx.data.teachers.views import DrawnViews
from clipx.data.tokenizer import Tokenizer
from clipx.data.transforms import FixedTransform, TrainTransform

ALL_CAPTIONED = Wanted()


def build_order(
    config: JobConfig,
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
        global_batch_size=config.pairs_read // data.captions_per_image,
        seed=config.seed,
        lanes=data.lanes if lanes is None else lanes,
        window=data.shuffle_window if shuffle_window is None else shuffle_window,
        allow_repeats=data.allow_repeats,
    )


def open_reader(
    indexes: Sequence[ShardIndex],
    order: DataOrder,
    *,
    data: DataConfig | FitDataConfig,
    image_size: int,
    tokenizer: Tokenizer,
    image: ImageConfig | None = None,
    wanted: Wanted = ALL_CAPTIONED,
    teachers: Teachers | None = None,
) -> BatchReader:
    """The reader of parts of batches that the config describes.

    Args:
        indexes: of the shards of each source.
        order: of the samples.
        data: what is read, and how.
        image_size: pixels of an image's side.
        tokenizer: of the captions.
        image: the tower that images are made for; None: as open_clip makes them.
        wanted: what an objective has read of every sample.
        teachers: the store whose views are seen; None: pictures are augmented anew in every epoch.

    Raises:
        InputError: files of class names or templates, or a folder for copies of shards, that cannot be used; a store of
            teachers' embeddings that does not fit.
    """
    described = sources(data)
    samples = open_samples(
        indexes,
        described,
        data=data,
        seed=order.seed,
        image_size=image_size,
        image=image,
        wanted=wanted,
        teachers=teachers,
    )
    return BatchReader(
        order,
        samples,
        tokenizer,
        captions_per_image=data.captions_per_image,
        groups=any(source.equal_captions == "ignored" for source in described),
        read_ahead_batches=data.remote.read_ahead_batches,
    )


def open_samples(
    indexes: Sequence[ShardIndex],
    described: Sequence[Source],
    *,
    data: DataConfig | FitDataConfig,
    seed: int,
    image_size: int,
    image: ImageConfig | None = None,
    wanted: Wanted = ALL_CAPTIONED,
    teachers: Teachers | None = None,
) -> SampleReader:
    """The reader of single samples of these sources; for the rest see `open_reader`."""
    image = TimmImageConfig(name="") if image is None else image
    readers = [
        SourceReader(
            name=source.name,
            image_key=source.image_key,
            caption_key=source.caption_key if isinstance(source.caption_key, str) else ";".join(source.caption_key),
            captions=wanted.texts or CaptionReader(source, captions_per_image=data.captions_per_image, seed=seed),
            transform=build_transform(image, image_size=image_size, augment=source.augment, decode=data.decode),
            images=wanted.images,
        )
        for source in described
    ]
    check_columns(wanted.columns)
    further = [reader.extensions for reader in wanted.columns]
    extensions = [reader.extensions.union(*further) for reader in readers]
    views: Views | None = None
    if teachers is not None:
        require_fits(teachers, described, indexes, decode=data.decode)
        views = DrawnViews(teachers.description, seed=seed)
    shards = ShardReader(indexes, extensions=extensions, remote=data.remote, cache=data.cache)
    return SampleReader(shards, readers, seed=seed, column_readers=wanted.columns, views=views)


def open_fit_samples(config: FitConfig, index: ShardIndex, *, targets: bool = True) -> SampleReader:
    """The reader of a fit run's samples as evaluation sees them: nothing is augmented or hidden.

    Args:
        config: resolved.
        index: of the shards for training, or of those that are held out.
        targets: whether their targets are read, too.
    """
    wanted = Wanted(
        columns=(FitColumns(config, training=False, targets=targets),),
        texts=JoinedText(config.text_columns),
        images="optional" if "image" in config.modalities else "unread",
    )
    return _open_fit(config, index, wanted)


def open_fit_targets(config: FitConfig, index: ShardIndex) -> SampleReader:
    """The reader of a fit run's targets, without any input; see `open_fit_samples`."""
    return _open_fit(config, index, Wanted(columns=(FitTargets(config),), texts=JoinedText(()), images="unread"))


def _open_fit(config: FitConfig, index: ShardIndex, wanted: Wanted) -> SampleReader:
    return open_samples(
        [index],
        [config.data.source(list(index.paths))],
        data=config.data,
        seed=config.seed,
        image_size=wanted.image_size(config.model.image.image_size),
        image=config.model.image,
        wanted=wanted,
    )


def build_transform(
    image: ImageConfig, *, image_size: int, augment: AugmentConfig | None, decode: Decode
) -> TrainTransform | FixedTransform:
    """What makes squares of `image_size` pixels of encoded pictures, for the tower that `image` describes.

    Args:
        augment: what is drawn; None: nothing, as in evaluation.
        decode: see `data.decode`.

    Raises:
        InputError: "scaled" without simplejpeg.
    """
    if augment is not None:
        return TrainTransform(image_size, augment, decode=decode, interpolation=image.interpolation)
    return FixedTransform(
        image_size, resize=image.resize, interpolation=image.interpolation, crop=image.crop, decode=decode
    )
