"""The part of the schema about a fit run's table: where it lies, what is held out, how its samples are read."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from clipx.config.data import AugmentConfig, Shards, Source, StreamConfig
from clipx.config.field_types import NO_BOOL, NOT_BLANK, STRICT, Count, FilePath, Text
from clipx.config.validate import validated


def _listed(value: Any) -> Any:
    """A single table as a list of one."""
    return value if isinstance(value, list | tuple) or value is None else [value]


_ONE = {"type": "string", "pattern": NOT_BLANK}
_ONE_OR_SEVERAL = {"anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1}]}
Tables = Annotated[Shards, BeforeValidator(_listed), WithJsonSchema(_ONE_OR_SEVERAL)]
Share = Annotated[float, Field(gt=0, lt=1), NO_BOOL]


@validated
@dataclass(frozen=True, kw_only=True)
class FitDataConfig(StreamConfig):
    """The table that a fit run learns from."""

    __pydantic_config__ = STRICT

    train: Tables
    """A table (CSV, TSV, JSON lines, parquet, arrow), a folder, or shards that `clipx data make` made of one; a table
    becomes shards in run_dir when the run begins."""
    val: Share | Tables = 0.1
    """What is held out: a share of the table's rows, or another table (or shards) with the same columns."""
    group: Text | None = None
    """Column of what must not be parted: of a share, all rows with one value are held out or none. A row is held out by
    a hash of this value, or of its key, so the same rows are for ever."""
    key: Text | None = None
    """Column that names each row, without repeats; null: the rows' numbers."""
    image_folder: FilePath | None = None
    """Where relative paths of pictures begin; null: the table's folder."""
    augment: AugmentConfig | None = None
    """Random crop, flip and colours in training; null: pictures as in evaluation."""
    train_shards: Shards | None = None
    """What training reads; null: to be made."""
    val_shards: Shards | None = None
    """What is evaluated on; null: to be made."""
    num_train: Count | None = None
    """Samples that training reads; null: to be counted."""

    @property
    def captions_per_image(self) -> int:
        """Texts of a sample."""
        return 1

    @property
    def sources(self) -> dict[str, Any]:
        """A fit run reads one set."""
        return {}

    def described(self) -> tuple[Source, ...]:
        """The training set as one source, named `train`."""
        return (self.source(self.train_shards or (), augment=self.augment),)

    def source(self, shards: "list[str] | tuple[str, ...]", *, augment: AugmentConfig | None = None) -> Source:
        """Shards that were made of a table, as a source."""
        return Source(
            name="train",
            shards=tuple(shards),
            weight=1.0,
            index=None,
            image_key="jpg;jpeg;png;webp;gif;bmp;tif;tiff;avif",
            caption_key="json",
            class_names=None,
            templates=None,
            equal_captions="negatives",
            augment=augment,
        )
