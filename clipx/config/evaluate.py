"""The part of the schema that describes evaluations: zero-shot classification, retrieval, and the loss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from clipx.config.data import Source
from clipx.config.field_types import NO_BOOL, STRICT, Count, FilePath, Interval, ShardPath, Text
from clipx.config.validate import validated
from clipx.errors import InputError


@validated
@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """Zero-shot classification of pictures with a class each."""

    __pydantic_config__ = STRICT

    type: Literal["zeroshot"] = "zeroshot"
    data: FilePath
    """Folder in CLIP_benchmark's `wds_*` layout, with a folder of pictures for each class, of CIFAR's binaries or of a
    saved Hugging Face data set; or a CSV of path and label."""
    split: Text = "test"
    """The part that is read: test, val or train, or its own name. Without a test part that for validation is read, and
    without parts the whole; what is chosen by one part is reported by another."""
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
    split: Text = "test"
    """The part of a folder in CLIP_benchmark's layout that is read, as of an evaluation of type zeroshot."""
    every_steps: Interval = 0
    """Evaluate every N steps; always at the end. 0: at the end only."""
    batch_size: Count = 256
    """Pairs per forward pass and rank."""
    image_key: Text = "jpg;jpeg;png;webp"
    """Extensions that hold the picture."""
    caption_key: Text = "txt"
    """Like data.caption_key; every caption of a list, or every line of a text member, counts as correct."""


@validated
@dataclass(frozen=True, kw_only=True)
class HeldOutLossConfig:
    """The run's `loss`, without its further terms, of held-out pairs in batches of the training's size.

    Pictures are prepared as for evaluation, and each counts once, with its first caption.
    """

    __pydantic_config__ = STRICT

    type: Literal["loss"] = "loss"
    data: ShardPath
    """Shards of pictures with captions that are not trained on, or a folder in CLIP_benchmark's layout."""
    split: Text = "test"
    """The part of a folder in CLIP_benchmark's layout that is read, as of an evaluation of type zeroshot."""
    every_steps: Interval = 0
    """Evaluate every N steps; always at the end. 0: at the end only."""
    pairs: Annotated[int, Field(ge=2), NO_BOOL] | None = None
    """Pairs that are compared with each other, on which the loss depends; null: as many as pictures in training,
    global_batch_size / data.captions_per_image. Set it where runs of different batches are compared. What fills no
    further batch is left out, and counted."""
    batch_size: Count = 256
    """Pairs per forward pass and rank."""
    image_key: Text = "jpg;jpeg;png;webp"
    """Extensions that hold the picture."""
    caption_key: Text = "txt"
    """Like data.caption_key; of a list of captions, or several lines of a text member, the first is taken."""

    def pairs_of_batch(self, global_batch_size: int, captions_per_image: int) -> int:
        """`pairs`, or what it stands for in a run with such batches."""
        return global_batch_size // captions_per_image if self.pairs is None else self.pairs

    def check_pairs(self, name: str, global_batch_size: int, captions_per_image: int) -> None:
        """Checks that a run with such batches has pairs to compare.

        Args:
            name: of this evaluation.
            global_batch_size: of the run.
            captions_per_image: of the run.

        Raises:
            InputError: a batch would be one pair, whose contrastive loss (0 for InfoNCE) compares nothing.
        """
        if self.pairs_of_batch(global_batch_size, captions_per_image) < 2:
            raise InputError(
                f"evaluate.{name} compares global_batch_size={global_batch_size} / "
                f"data.captions_per_image={captions_per_image} pairs with each other, and one alone says nothing; set "
                f"evaluate.{name}.pairs, at least 2"
            )


EvaluateConfig = Annotated[ZeroShotConfig | RetrievalConfig | HeldOutLossConfig, Field(discriminator="type")]


def check_captions(evaluations: Mapping[str, EvaluateConfig], sources: Sequence[Source]) -> None:
    """Checks that what held-out losses read as captions are no numbers of classes.

    Their shards are held out of those of the run; sets for retrieval are other ones, and may have other keys.

    Args:
        evaluations: of the run, by name.
        sources: of its data.

    Raises:
        InputError: a held-out loss reads captions where a source has numbers, which its `class_names` name.
    """
    numbered = {key: each.name for each in sources if each.class_names is not None for key in _keys(each.caption_key)}
    for name, evaluation in evaluations.items():
        if not isinstance(evaluation, HeldOutLossConfig):
            continue
        for key in _keys(evaluation.caption_key):
            if key in numbered:
                raise InputError(
                    f"evaluate.{name}.caption_key={evaluation.caption_key}: {key} holds the numbers of class_names of "
                    f"source {numbered[key]!r}, and type {evaluation.type} compares captions; take an evaluation of "
                    "type zeroshot, or a key of captions"
                )


def _keys(caption_key: str | Mapping[str, object]) -> Iterator[str]:
    """Each alternative of each key."""
    for key in [caption_key] if isinstance(caption_key, str) else caption_key:
        yield from (alternative.strip().removeprefix(".") for alternative in key.split(";"))
