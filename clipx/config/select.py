"""The part of the schema about chosen batches: a step reads more pairs than it trains on, and chooses."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from clipx.config.field_types import STRICT, Count, FilePath, Number, Positive, PositiveFraction, Text
from clipx.config.paths import is_same_path
from clipx.config.validate import validated
from clipx.errors import InputError

_ROUNDED = 1e-3  # pairs: a share that is no decimal number, as 1/3, is written with some digits


@validated
@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Batches chosen jointly from larger ones (JEST, arXiv 2406.17711)."""

    __pydantic_config__ = STRICT

    keep: PositiveFraction
    """Share of the pairs read that are trained on: a step reads global_batch_size / keep pairs, and chooses
    global_batch_size of them."""
    score: Literal["learnability", "easy_reference", "hard_learner"] = "learnability"
    """What is high of the chosen. learnability: the learner's loss minus the reference's; easy_reference: minus the
    reference's, which spares the learner's forward passes; hard_learner: the learner's, without a reference."""
    reference: FilePath | None = None
    """Folder of `clipx data teach`: embeddings of these shards by the model whose loss is compared with; the same as
    data.teachers where that is set too."""
    teacher: Text | None = None
    """Which of the models there; null: the only one."""
    logit_scale: Positive | None = None
    """Multiplier of the reference's similarities; null: the one that it was trained to."""
    logit_bias: Number | None = None
    """Added to the reference's similarities: needed with loss.type=sigmoid, where it belongs to the reference's scale
    as the learner's to its own; null: the loss has none."""
    chunks: Count = 16
    """Parts in which a batch is chosen, each given those before it: a divisor of global_batch_size; 1: every pair by
    itself alone."""
    gain: Positive = 1.0
    """Multiplier of scores before pairs are drawn with probabilities from their softmax; larger: the best, always."""
    image_size: Count | None = None
    """Pixels of the pictures that the learner is scored on, at most those of training; null: as in training."""

    @property
    def needs_reference(self) -> bool:
        """Whether the scores have a reference's loss."""
        return self.score != "hard_learner"

    @property
    def needs_learner(self) -> bool:
        """Whether the scores have the learner's loss."""
        return self.score != "easy_reference"

    @property
    def _unused(self) -> tuple[str, ...]:
        """Keys that say something of a model that the scores do not have."""
        of_reference = () if self.needs_reference else ("reference", "teacher", "logit_scale", "logit_bias")
        return of_reference if self.needs_learner else ("image_size", *of_reference)

    def check(self, *, global_batch_size: int, captions_per_image: int, teachers: str | None) -> None:
        """Looks at what other parts of the config say.

        Args:
            global_batch_size: pairs of a step.
            captions_per_image: `data.captions_per_image`.
            teachers: `data.teachers`.

        Raises:
            InputError: a rule is broken.
        """
        if self.needs_reference and self.reference is None:
            raise InputError(
                f"select.score={self.score} compares with a reference: set select.reference to a folder of "
                "`clipx data teach`, or select.score=hard_learner"
            )
        for name in self._unused:
            if (value := getattr(self, name)) is not None:
                raise InputError(
                    f"select.score={self.score} has no use for select.{name}={value}; leave it out, or set "
                    "select.score=learnability"
                )
        if teachers is not None and self.reference is not None and not is_same_path(teachers, self.reference):
            raise InputError(
                f"select.reference={self.reference} and data.teachers={teachers}: a picture is seen as one store has "
                "it; give both the same folder, which may hold several teachers"
            )
        if captions_per_image != 1:
            raise InputError(
                f"data.captions_per_image={captions_per_image} with select: pairs are chosen one by one; set it to 1"
            )
        if global_batch_size % self.chunks:
            divisors = [number for number in range(1, global_batch_size + 1) if global_batch_size % number == 0]
            nearest = [d for d in divisors if d < self.chunks][-1:] + [d for d in divisors if d > self.chunks][:1]
            raise InputError(
                f"select.chunks={self.chunks} does not divide global_batch_size={global_batch_size}; nearest that do: "
                f"{', '.join(map(str, nearest))}"
            )
        self.super_batch_size(global_batch_size)

    def super_batch_size(self, global_batch_size: int, world_size: int = 1) -> int:
        """Pairs that a step of all ranks reads: global_batch_size / keep.

        Raises:
            InputError: that is no whole number, or the ranks cannot share it; the message has the nearest that work.
        """
        wanted = global_batch_size / Fraction(str(self.keep))
        size = round(wanted)
        if abs(wanted - size) <= _ROUNDED and size % world_size == 0:
            return size
        below = int(wanted) // world_size * world_size
        fitting = [size for size in (below, below + world_size) if size >= global_batch_size]
        nearest = ", ".join(f"{global_batch_size / size:.9g} ({size} pairs)" for size in fitting)
        shared = f" that {world_size} processes can share" if world_size > 1 else ""
        raise InputError(
            f"select.keep={self.keep}: global_batch_size={global_batch_size} / keep = {float(wanted):.9g} is no whole "
            f"number of pairs{shared}; nearest keep that works: {nearest}"
        )
