"""From the raw outputs of a fitted model to what they mean: classes, labels, and numbers in their units.

The inverse of what was done to the targets (`clipx.data.fit_columns`), in float64 whatever the model computed in.

Shapes: B rows, K classes of a target, L labels, O raw outputs of all targets side by side.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from torch import Tensor

from clipx.config.fit_inputs import ClassTarget, Head, LabelsTarget, NumberTarget

LIKELY = 0.5
"""A label of at least this probability is one of a row's labels."""


@dataclass(frozen=True)
class ClassPrediction:
    """The class of each row."""

    names: Sequence[str]
    probability_BK: Tensor
    """float64; each row sums to one."""

    def best(self) -> Tensor:
        """int64 (B,): the most probable class, the first of equal ones."""
        return self.probability_BK.argmax(1)


@dataclass(frozen=True)
class NumberPrediction:
    """The number of each row."""

    value_B: Tensor
    """float64, in the units of the table."""


@dataclass(frozen=True)
class LabelsPrediction:
    """The labels of each row, any number of them."""

    names: Sequence[str]
    probability_BL: Tensor
    """float64; each label is a question of its own."""


Prediction: TypeAlias = ClassPrediction | NumberPrediction | LabelsPrediction


def predictions(heads: Sequence[Head], raw_BO: Tensor) -> dict[str, Prediction]:
    """What raw outputs say of each target, by its name.

    Args:
        heads: of a resolved config.
        raw_BO: of `clipx.models.fused.FusedModel`.
    """
    return {head.name: _prediction(head, raw_BO[:, head.outputs]) for head in heads}


def _prediction(head: Head, raw_BK: Tensor) -> Prediction:
    match head.target:
        case ClassTarget(classes=classes):
            return ClassPrediction(classes or (), class_probabilities(raw_BK))
        case NumberTarget() as target:
            return NumberPrediction(in_units(target, raw_BK[:, 0]))
        case LabelsTarget(classes=classes):
            return LabelsPrediction(classes or (), label_probabilities(raw_BK))
        case _:
            assert_never(head.target)


def class_probabilities(logits_BK: Tensor) -> Tensor:
    """float64 (B, K): the softmax of the logits."""
    return logits_BK.double().softmax(1)


def label_probabilities(logits_BL: Tensor) -> Tensor:
    """float64 (B, L): the sigmoid of each logit."""
    return logits_BL.double().sigmoid()


def in_units(target: NumberTarget, scaled_B: Tensor) -> Tensor:
    """float64 (B,): numbers in the units of the table, of scaled ones (a model's raw output, or a column of targets).

    scaled = (transform(value) - mean) / std, so value = exp(scaled std + mean) where the transform is the logarithm.
    """
    assert target.mean is not None, "the config is not resolved"
    assert target.std is not None, "the config is not resolved"
    transformed_B = scaled_B.double() * target.std + target.mean
    return transformed_B.exp() if target.transform == "log" else transformed_B


def cells(prediction: Prediction, name: str, *, all_probabilities: bool = False) -> list[dict[str, object]]:
    """For each row the values of a target, under names that begin with the target's.

    NAME is the class, the number, or the list of labels; NAME_probability the probability of the class;
    NAME_probabilities those of all classes or labels by their names.
    """
    match prediction:
        case ClassPrediction(names, probability_BK):
            best, probability = prediction.best().tolist(), probability_BK.amax(1).tolist()
            found: list[dict[str, object]] = [
                {name: names[index], f"{name}_probability": value}
                for index, value in zip(best, probability, strict=True)
            ]
        case NumberPrediction(value_B):
            return [{name: value} for value in value_B.tolist()]
        case LabelsPrediction(names, probability_BK):
            found = [
                {name: [label for label, likely in zip(names, row, strict=True) if likely]}
                for row in (probability_BK >= LIKELY).tolist()
            ]
        case _:
            assert_never(prediction)
    if all_probabilities:
        for row, values in zip(found, probability_BK.tolist(), strict=True):
            row[f"{name}_probabilities"] = dict(zip(names, values, strict=True))
    return found


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, with underscores behind it if it is taken: targets keep their names, and what else is said moves."""
    while name in taken:
        name += "_"
    return name


def no_cells(head: Head, *, all_probabilities: bool = False) -> dict[str, None]:
    """The values of a target, all None, in a row for which there is no prediction."""
    names = [head.name]
    if head.kind == "class":
        names.append(f"{head.name}_probability")
    if head.kind != "number" and all_probabilities:
        names.append(f"{head.name}_probabilities")
    return dict.fromkeys(names)
