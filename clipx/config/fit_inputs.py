"""The part of the schema about the columns of a table: what a fit run reads, and what it learns to predict.

What is null until it is found (classes, means) is found once, in the training rows, and stands in the resolved config.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from clipx.config.field_types import STRICT, Count, Number, Positive, Text
from clipx.config.validate import validated

Modality = Literal["image", "text", "table"]
HeadKind = Literal["class", "number", "labels"]
Transform = Literal["none", "log"]


@validated
@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """A column of pictures."""

    __pydantic_config__ = STRICT

    type: Literal["image"] = "image"
    column: Text | None = None
    """Of the paths or pictures; null: the input's own name."""


@validated
@dataclass(frozen=True, kw_only=True)
class TextInput:
    """Columns of text, joined by a comma and a blank."""

    __pydantic_config__ = STRICT

    type: Literal["text"] = "text"
    columns: tuple[Text, ...] = ()
    """In the order in which they are joined; blank cells are passed over. Empty: the input's own name."""


@validated
@dataclass(frozen=True, kw_only=True)
class NumberInput:
    """A column of numbers."""

    __pydantic_config__ = STRICT

    type: Literal["number"] = "number"
    column: Text | None = None
    """Null: the input's own name."""
    mean: Number | None = None
    """Of the training rows; null: to be found."""
    std: Positive | None = None
    """Standard deviation of the training rows; null: to be found."""


@validated
@dataclass(frozen=True, kw_only=True)
class CategoryInput:
    """A column of words, of which there are few different ones."""

    __pydantic_config__ = STRICT

    type: Literal["category"] = "category"
    column: Text | None = None
    """Null: the input's own name."""
    classes: tuple[str, ...] | None = None
    """The words of the training rows; null: to be found. Other words count as absent."""


InputConfig = Annotated[ImageInput | TextInput | NumberInput | CategoryInput, Field(discriminator="type")]


@validated
@dataclass(frozen=True, kw_only=True)
class ClassTarget:
    """One class of several."""

    __pydantic_config__ = STRICT

    type: Literal["class"] = "class"
    column: Text | None = None
    """Null: the target's own name."""
    weight: Positive = 1.0
    """Of its loss, the cross-entropy, in the sum of all targets'."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a row counts by the inverse of its class's frequency, 1 on average."""
    classes: tuple[str, ...] | None = None
    """Of the training rows; null: to be found."""
    counts: tuple[Count, ...] | None = None
    """Training rows of each class; null: to be found."""


@validated
@dataclass(frozen=True, kw_only=True)
class NumberTarget:
    """A number."""

    __pydantic_config__ = STRICT

    type: Literal["number"] = "number"
    column: Text | None = None
    """Null: the target's own name."""
    weight: Positive = 1.0
    """Of its loss, Huber's of the scaled number, in the sum of all targets'."""
    transform: Transform = "none"
    """log: learns the logarithm, for numbers above 0 whose ratios matter (prices)."""
    mean: Number | None = None
    """Of the transformed numbers of the training rows; null: to be found."""
    std: Positive | None = None
    """Their standard deviation; null: to be found."""


@validated
@dataclass(frozen=True, kw_only=True)
class LabelsTarget:
    """Any number of labels."""

    __pydantic_config__ = STRICT

    type: Literal["labels"] = "labels"
    column: Text | None = None
    """Null: the target's own name."""
    weight: Positive = 1.0
    """Of its loss, the binary cross-entropy averaged over labels, in the sum of all targets'."""
    separator: Text = ";"
    """Between the labels of a cell that is no list."""
    classes: tuple[str, ...] | None = None
    """All labels of the training rows; null: to be found."""
    counts: tuple[Count, ...] | None = None
    """Training rows with each label; null: to be found."""
    num_rows: Count | None = None
    """Training rows that have the target, with labels or none; null: to be found."""


TargetConfig = Annotated[ClassTarget | NumberTarget | LabelsTarget, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a target stands in the batch's column of targets and in the model's outputs."""

    name: str
    kind: HeadKind
    size: int
    """Outputs: classes, labels, or 1."""
    columns: slice
    """Of `targets_BO`: one, or one for each label."""
    outputs: slice
    """Of the raw outputs."""
    target: ClassTarget | NumberTarget | LabelsTarget = field(repr=False)


def heads_of(targets: dict[str, ClassTarget | NumberTarget | LabelsTarget]) -> tuple[Head, ...]:
    """The heads of resolved targets, side by side in the order of the config."""
    heads: list[Head] = []
    column = output = 0
    for name, target in targets.items():
        size = 1 if isinstance(target, NumberTarget) else len(target.classes or ())
        width = size if isinstance(target, LabelsTarget) else 1
        heads.append(
            Head(
                name=name,
                kind=target.type,
                size=size,
                columns=slice(column, column + width),
                outputs=slice(output, output + size),
                target=target,
            )
        )
        column, output = column + width, output + size
    return tuple(heads)
