"""The part of the schema that describes evaluations: zero-shot classification and retrieval."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from clipx.config.field_types import STRICT, Count, FilePath, Interval, ShardPath, Text
from clipx.config.validate import validated


@validated
@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """Zero-shot classification of pictures with a class each."""

    __pydantic_config__ = STRICT

    type: Literal["zeroshot"] = "zeroshot"
    data: FilePath
    """Folder in CLIP_benchmark's `wds_*` layout, with a folder of pictures for each class, of CIFAR's binaries or of a
    saved Hugging Face data set; or a CSV of path and label. Its test part is read, else that for validation."""
    every_steps: Interval = 0
    """Evaluate every N steps; always at the end. 0: at the end only."""
    batch_size: Count = 256
    """Pictures per forward pass and rank."""


@validated
@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Recall at 1, 5 and 10 between pictures and captions, both ways."""

    __pydantic_config__ = STRICT

    type: Literal["retrieval"] = "retrieval"
    data: ShardPath
    """Shards of pictures with captions, or a folder in CLIP_benchmark's layout."""
    every_steps: Interval = 0
    """Evaluate every N steps; always at the end. 0: at the end only."""
    batch_size: Count = 256
    """Pairs per forward pass and rank."""
    image_key: Text = "jpg;jpeg;png;webp"
    """Extensions that hold the picture."""
    caption_key: Text = "txt"
    """Like data.caption_key; every caption of a list, or every line of a text member, counts as correct."""


EvaluateConfig = Annotated[ZeroShotConfig | RetrievalConfig, Field(discriminator="type")]
