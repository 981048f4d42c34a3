"""Tests of the projections from towers to the shared space."""

import pytest
import torch
from torch import nn

from clipx.errors import InputError
from clipx.models.projection import build_projection, initialise_projection


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def test_shapes_are_those_of_open_clip() -> None:
    assert shapes(build_projection("linear", 12, 8, tower="image")) == {"weight": (8, 12)}
    assert shapes(build_projection("linear", 12, 8, tower="text", bias=True)) == {"weight": (8, 12), "bias": (8,)}
    assert shapes(build_projection("mlp", 12, 8, tower="text")) == {"0.weight": (10, 12), "2.weight": (8, 10)}
    assert shapes(build_projection("mlp", 12, 8, tower="image")) == {
        "0.weight": (16, 12),
        "0.bias": (16,),
        "2.weight": (8, 16),
    }
    assert shapes(build_projection("none", 8, 8, tower="image")) == {}


def test_none_needs_the_channels_of_the_shared_space() -> None:
    with pytest.raises(InputError, match=r"model\.image\.projection=none: the tower has 12 channels"):
        build_projection("none", 12, 8, tower="image")


def test_matrices_begin_with_the_deviation_of_clip() -> None:
    torch.manual_seed(0)
    projection = build_projection("mlp", 400, 300, tower="image", bias=True)
    initialise_projection(projection)
    for layer in (projection[0], projection[2]):
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.02)
        assert not layer.bias.any()
