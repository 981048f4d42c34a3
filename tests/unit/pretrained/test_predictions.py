"""Raw outputs of a fitted model as classes, labels and numbers in their units."""

import math

import pytest
import torch

from clipx.config.fit_inputs import ClassTarget, Head, LabelsTarget, NumberTarget, heads_of
from clipx.pretrained.predictions import ClassPrediction, NumberPrediction, cells, in_units, no_cells, predictions

_HEADS = heads_of(
    {
        "shape": ClassTarget(classes=("disc", "ring", "star"), counts=(1, 1, 1)),
        "price": NumberTarget(transform="log", mean=2.0, std=0.5),
        "tags": LabelsTarget(classes=("new", "sale"), counts=(1, 1)),
        "weight": NumberTarget(mean=10.0, std=4.0),
    }
)
_RAW_BO = torch.tensor([[0.0, 2.0, 1.0, 1.0, 3.0, 0.0, -2.0], [1.0, 1.0, -1.0, -2.0, -0.1, -5.0, 0.5]])


def _head(name: str) -> Head:
    return next(head for head in _HEADS if head.name == name)


def test_classes_have_the_softmax_of_their_logits() -> None:
    shape = predictions(_HEADS, _RAW_BO)["shape"]
    assert isinstance(shape, ClassPrediction)
    assert shape.best().tolist() == [1, 0]  # of equal ones the first
    total = 1 + math.exp(2) + math.exp(1)
    assert shape.probability_BK[0].tolist() == pytest.approx([1 / total, math.exp(2) / total, math.exp(1) / total])
    assert shape.probability_BK.dtype == torch.float64


def test_numbers_come_back_in_their_units() -> None:
    found = predictions(_HEADS, _RAW_BO)
    price, weight = found["price"], found["weight"]
    assert isinstance(price, NumberPrediction)
    assert isinstance(weight, NumberPrediction)
    assert price.value_B.tolist() == pytest.approx([math.exp(2.5), math.exp(1.0)])
    assert weight.value_B.tolist() == [2.0, 12.0]


def test_a_scaled_number_of_the_table_comes_back_as_it_was() -> None:
    target = NumberTarget(transform="log", mean=1.5, std=2.5)
    values = torch.tensor([0.5, 3.0, 700.0], dtype=torch.float64)
    assert torch.allclose(in_units(target, (values.log() - 1.5) / 2.5), values, rtol=1e-14)


def test_a_row_has_its_values_under_names_of_the_target() -> None:
    found = predictions(_HEADS, _RAW_BO)
    assert [row["shape"] for row in cells(found["shape"], "shape")] == ["ring", "disc"]
    assert [set(row) for row in cells(found["shape"], "shape")] == [{"shape", "shape_probability"}] * 2
    assert [row["tags"] for row in cells(found["tags"], "tags")] == [["new", "sale"], []]  # 0.5 is likely
    assert cells(found["weight"], "weight") == [{"weight": 2.0}, {"weight": 12.0}]


def test_all_probabilities_stand_by_class_and_label() -> None:
    found = predictions(_HEADS, _RAW_BO)
    shape = cells(found["shape"], "shape", all_probabilities=True)[0]
    assert list(shape["shape_probabilities"]) == ["disc", "ring", "star"]  # type: ignore[call-overload]
    assert shape["shape_probabilities"]["ring"] == shape["shape_probability"]  # type: ignore[index]
    tags = cells(found["tags"], "tags", all_probabilities=True)[1]
    assert tags["tags_probabilities"] == pytest.approx({"new": 1 / (1 + math.exp(0.1)), "sale": 1 / (1 + math.exp(5))})


@pytest.mark.parametrize("name", ["shape", "price", "tags", "weight"])
@pytest.mark.parametrize("everything", [False, True])
def test_a_row_without_prediction_has_the_same_names(name: str, everything: bool) -> None:
    there = cells(predictions(_HEADS, _RAW_BO)[name], name, all_probabilities=everything)[0]
    assert no_cells(_head(name), all_probabilities=everything) == dict.fromkeys(there)
