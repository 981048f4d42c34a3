"""The part of the schema about training data: shards, images and captions, augmentation, remote reads, cache."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from clipx.config.captions import CaptionKey, EqualCaptions, PartsConfig, has_parts
from clipx.config.field_types import (
    NO_BOOL,
    STRICT,
    Count,
    FilePath,
    Fraction,
    Interval,
    NonNegative,
    Positive,
    ShardPath,
    Text,
)
from clipx.config.validate import validated
from clipx.errors import InputError

Decode = Literal["fast", "scaled", "pil"]
Shards = Annotated[list[ShardPath], Field(min_length=1)]


def _only_names(value: Any) -> Any:
    """Refuses a list of mappings, which other tools accept, and says where weights belong."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        raise InputError(
            "data.train is a list of shards, together one set; a mixture has named sources: "
            "data.sources: {NAME: {shards: [...], weight: 3}}"
        )
    return value


@validated
@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    """Random colours, as torchvision's v2.ColorJitter."""

    __pydantic_config__ = STRICT

    probability: Fraction = 0.8
    """Share of the pictures that it changes (SimCLR, arXiv 2002.05709: 0.8)."""
    brightness: NonNegative = 0.4
    """Factors from max(0, 1 - value) to 1 + value."""
    contrast: NonNegative = 0.4
    """Like brightness."""
    saturation: NonNegative = 0.4
    """Like brightness."""
    hue: Annotated[float, Field(ge=0, le=0.5), NO_BOOL] = 0.1
    """Shifts of the hue from -value to value, in turns."""


@validated
@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """RandAugment (arXiv 1909.13719), as torchvision's v2.RandAugment."""

    __pydantic_config__ = STRICT

    num_ops: Count = 2
    """Operations on each picture, one after the other."""
    magnitude: Annotated[int, Field(ge=0, le=30), NO_BOOL] = 9
    """Strength of all operations, of 31 steps from 0 to 30."""


@validated
@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation; evaluation draws nothing, and resizes as `model.image.resize` says."""

    __pydantic_config__ = STRICT

    crop_scale: tuple[Fraction, Fraction] = (0.9, 1.0)
    """Share of the picture's area that the random crop keeps, from and to (CLIP-style pretraining: 0.9 to 1)."""
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Width over height of the random crop, from and to."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip; off by default since captions say left and right."""
    color_jitter: JitterConfig | None = None
    """Random brightness, contrast, saturation and hue, computed on the device."""
    grayscale: Fraction = 0.0
    """Probability of losing all colour, on the device."""
    rand_augment: RandAugmentConfig | None = None
    """Random operations of torchvision's list, on the device."""

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise InputError(
                    f"data.augment.{name}=[{low}, {high}]: the first must be above 0 and at most the second"
                )


@validated
@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One of several sources of a mixture; what it leaves out is as in `data`."""

    __pydantic_config__ = STRICT

    shards: Shards
    """Like data.train."""
    weight: Positive = 1.0
    """Share of the pairs, relative to the other sources' weights."""
    index: FilePath | None = None
    """Like data.index."""
    image_key: Text | None = None
    """Like data.image_key."""
    caption_key: CaptionKey | None = None
    """Like data.caption_key."""
    class_names: FilePath | list[Text] | None = None
    """Like data.class_names."""
    templates: FilePath | list[Text] | None = None
    """Like data.templates."""
    equal_captions: EqualCaptions | None = None
    """Like data.equal_captions."""
    augment: AugmentConfig | None = None
    """Like data.augment; what the device computes must be the same in all sources."""


@validated
@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """Reading from http(s), s3, gs, hf and whatever else fsspec opens."""

    __pydantic_config__ = STRICT

    timeout_s: Positive = 60.0
    """Seconds that one read may take before it is tried again."""
    retries: Interval = 5
    """Further tries of a read that failed, after 0.5, 1, 2, ... (at most 30) seconds; then the run ends."""
    read_ahead_batches: Count = 2
    """Batches before its first use at which a window of samples is asked for."""
    connections: Count = 8
    """Reads under way at once in each loader process."""


@validated
@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Whole shards of remote sources kept on a local disk, shared by all processes of a machine."""

    __pydantic_config__ = STRICT

    folder: FilePath
    """Where they are kept."""
    max_gb: Positive = 100.0
    """Most 10^9 bytes; the shards that were used longest ago make room."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source in which every value is resolved: its own, or the one of `data`."""

    name: str
    shards: tuple[str, ...]
    weight: float
    index: str | None
    image_key: str
    caption_key: str | Mapping[str, float | PartsConfig]
    class_names: str | list[str] | None
    templates: str | list[str] | None
    equal_captions: Literal["negatives", "ignored"]
    augment: AugmentConfig | None
    """None: the preprocessing of evaluation, which draws nothing."""

    @property
    def draws_parts(self) -> bool:
        """Whether texts may be parts of stored captions."""
        return has_parts(self.caption_key)

    @property
    def texts_are_stored(self) -> bool:
        """Whether each text is a whole caption of the sample as it is stored: no part, template or class name."""
        return not self.draws_parts and self.templates is None and self.class_names is None


@validated
@dataclass(frozen=True, kw_only=True)
class StreamConfig(ABC):
    """How the samples of a run are ordered, read and decoded, whatever is read of them."""

    __pydantic_config__ = STRICT

    lanes: Literal["auto"] | Count = "auto"
    """Parallel read positions, a divisor of global_batch_size; auto: the largest up to 4096. Fixed for a run's life."""
    shuffle_window: Literal["auto"] | Count = "auto"
    """Samples of a lane that are shuffled together; auto: max(16, 65536 / lanes)."""
    workers: Literal["auto"] | Interval = "auto"
    """Loader processes per rank; 0 loads in the training process. Never changes the data order. auto: as many as a
    short measurement says are needed."""
    prefetch_batches: Count = 2
    """Batches that the workers of a rank hold ready."""
    decode: Decode = "fast"
    """fast: libjpeg-turbo, Pillow for what it cannot read; scaled: JPEGs decoded at 1/2 to 1/8 where the crop stays
    at least as large as the result, faster, and 0.5 to 0.7 of 255 away on average; pil: Pillow for all."""
    max_bad_fraction: Fraction = 0.01
    """Share of distinct samples that may be undecodable or without caption before the run stops (from 100 on)."""
    allow_repeats: bool = False
    """Permit a set smaller than its share of one global batch."""
    allow_change: bool = False
    """Resume although shards, counts, lanes, window, batch size, seed or a store of teachers differ from those the run
    began with."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """Reads over a network."""
    cache: CacheConfig | None = None
    """Keep remote shards on a local disk; null: only what is read is fetched."""

    @abstractmethod
    def described(self) -> tuple[Source, ...]:
        """The sources in the order of the config."""


@validated
@dataclass(frozen=True, kw_only=True)
class DataConfig(StreamConfig):
    """The training stream."""

    __pydantic_config__ = STRICT

    train: Annotated[Shards | None, BeforeValidator(_only_names)] = None
    """Shards, together one set: tar files, folders, globs, braces ({00000..01242}) and lists joined by `::`; local,
    http(s)://, s3://, gs://, hf://, `pipe:COMMAND`. In any address `${NAME}` is the environment's NAME, for what must
    not be written down. Or `sources`, one of the two."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Sets that are mixed, by name, in exact proportions to their weights."""
    index: FilePath | None = None
    """Folder of the shards' index, made by `clipx data index`; default: beside the shards, or the user's cache where
    that cannot be written."""
    image_key: Text = "jpg;jpeg;png;webp"
    """Extensions that hold the picture, first present wins."""
    caption_key: CaptionKey = "txt"
    """Extension that holds the caption (`;` between alternatives); `json:captions` takes that field of a json member.
    Of a list of captions one is drawn per epoch. A mapping of such keys to weights draws one of those present; with
    {weight: 1, sentence: 0.5, words: [8, 40]} in the place of a weight, a part of its captions."""
    class_names: FilePath | list[Text] | None = None
    """For labelled data: the names, or a file with one per line, of which the caption key's number is the place."""
    templates: FilePath | list[Text] | None = None
    """Prompts with {c} where the caption or class name goes, or a file with one per line; one is drawn per epoch."""
    captions_per_image: Count = 1
    """Captions of a picture that are trained on together, all of them positives; global_batch_size counts pairs. A
    picture with fewer repeats them."""
    equal_captions: EqualCaptions = "auto"
    """`ignored`: pairs of equal captions, or of the same class, are not each other's negatives (as UniCL does with
    labels, arXiv 2204.03610, but without making them positives). auto: ignored where parts of captions are drawn,
    else negatives."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crop, flip and colours."""
    teachers: FilePath | None = None
    """Folder of `clipx data teach`: teachers' embeddings of these shards. An epoch then draws one of the views that
    they saw of each picture."""

    def __post_init__(self) -> None:
        if (self.train is None) == (not self.sources):
            raise InputError(
                f"data.train={self.train} and data.sources of {len(self.sources)}: give exactly one of the two "
                "(data.train=null takes the first away)"
            )
        if len({device_part(source.augment or self.augment) for source in self.sources.values()}) > 1:
            raise InputError(
                "data.sources: color_jitter, grayscale and rand_augment differ between sources; the device computes "
                "them for whole batches: set them in data.augment alone"
            )
        for source in self.described():
            if source.draws_parts and source.class_names is not None:
                raise InputError(
                    f"data.caption_key of source {source.name!r} draws parts of captions, but with class_names "
                    "captions are numbers: leave class_names out, or give each key a weight alone"
                )

    def described(self) -> tuple[Source, ...]:
        """The sources in the order of the config; without `sources` there is one, named `train`."""
        configs = self.sources or {"train": SourceConfig(shards=self.train or [])}
        return tuple(
            Source(name=name, shards=tuple(config.shards), weight=config.weight, **self._resolved(config))
            for name, config in configs.items()
        )

    def _resolved(self, config: SourceConfig) -> dict[str, Any]:
        """A source's values of the keys that `data` has too."""
        inherited = ("index", "image_key", "caption_key", "class_names", "templates", "equal_captions", "augment")
        values = {
            key: getattr(self, key) if getattr(config, key) is None else getattr(config, key) for key in inherited
        }
        if values["equal_captions"] == "auto":
            values["equal_captions"] = "ignored" if has_parts(values["caption_key"]) else "negatives"
        return values


def device_part(augment: AugmentConfig | None) -> tuple[object, ...]:
    """The augmentations that the device computes; comparable, so that sources can be compared."""
    if augment is None:
        return ()
    return augment.color_jitter, augment.grayscale, augment.rand_augment


def sources(data: StreamConfig) -> tuple[Source, ...]:
    """The sources in the order of the config."""
    return data.described()
