"""Whether weights are those of a model: none missing, none too many, all of its shapes."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from clipx.config.model import ModelConfig
from clipx.errors import InputError, some_names
from clipx.models.clip import build_model
from clipx.models.key_maps.key_map import KeyMap


def expected_shapes(names: KeyMap, config: ModelConfig, *, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights of a model, under a library's names.

    Args:
        names: the library's.
        config: of the model.
        vocab_size: number of its tokenizer's ids.
    """
    with torch.device("meta"):
        model = build_model(config, vocab_size=vocab_size, seed=0)
    return {name: tuple(tensor.shape) for name, tensor in names.to_theirs(model.state_dict()).items()}


def check_whole(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    *,
    place: object,
    scalars: Collection[str] = (),
) -> None:
    """Checks names and shapes of stored weights.

    Args:
        weights: as they are stored, or under our names.
        expected: the shapes by the same names.
        place: of the weights, for messages.
        scalars: names of single numbers, which may have any axes.

    Raises:
        InputError: some are missing, are more than the model has, or have other shapes.
    """
    other = [
        f"{name} ({_shown(tensor.shape)} instead of {_shown(expected[name])})"
        for name, tensor in weights.items()
        if name in expected and tuple(tensor.shape) != expected[name] and not (name in scalars and tensor.numel() == 1)
    ]
    faults = {
        "lack": expected.keys() - weights.keys(),
        "have no place for": weights.keys() - expected.keys(),
        "have another shape of": other,
    }
    if listed := [f"{fault} {some_names(sorted(names))}" for fault, names in faults.items() if names]:
        raise InputError(f"{place}: the weights do not fit the config: they {' and '.join(listed)}; take a whole model")


def _shown(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "one number"
