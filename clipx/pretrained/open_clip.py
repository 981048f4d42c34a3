"""Models of open_clip: their config, and their weights under our names."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx.config.model import ModelConfig, TransformerTextConfig
from clipx.errors import InputError, some_names
from clipx.pretrained.open_clip_config import CLIP_VOCABULARY, CONFIG, read_config, sections

if TYPE_CHECKING:
    from torch import Tensor

    from clipx.models.key_maps.key_map import KeyMap
    from clipx.models.key_maps.open_clip import Towers

__all__ = ["WEIGHTS", "read_config", "read_weights"]

WEIGHTS = "open_clip_model.safetensors"
_FILES = (  # in open_clip's order
    WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_OWN_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
_NO_WEIGHT = ".position_ids"  # a buffer that transformers stored once


def read_weights(folder: Path, config: ModelConfig) -> "dict[str, Tensor]":
    """The folder's weights under our names.

    Args:
        folder: of a model, or of an export of ours.
        config: of the model, as `read_config` or the export has it.

    Raises:
        InputError: the file is broken, holds more than tensors, or has too few or too many weights.
    """
    import torch

    from clipx.models.key_maps.open_clip import key_map

    file = _file(folder)
    towers = _towers(folder)
    theirs = _as_written_now(_read(file), towers)
    if config.init_logit_bias is not None:  # weights of a model without one: open_clip begins with 0
        theirs.setdefault("logit_bias", torch.zeros(1))
    names = key_map(towers)
    _check(theirs, _expected(names, config, folder), file)
    return names.to_ours(theirs)


def _expected(names: "KeyMap", config: ModelConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights of a model, under open_clip's names."""
    import torch

    from clipx.models.clip import build_model

    own_text = isinstance(config.text, TransformerTextConfig)  # an encoder of transformers has its own vocabulary
    vocab_size = sections(folder)[2].get("vocab_size", CLIP_VOCABULARY) if own_text else 1
    with torch.device("meta"):
        model = build_model(config, vocab_size=vocab_size, seed=0)
    return {name: tuple(tensor.shape) for name, tensor in names.to_theirs(model.state_dict()).items()}


def _check(theirs: "Mapping[str, Tensor]", expected: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Raises InputError if weights are missing, are more than the model has, or have other shapes."""
    scalars = ("logit_scale", "logit_bias")  # of one number, whatever their axes
    other = [name for name in theirs if name in expected and tuple(theirs[name].shape) != expected[name]]
    faults = {
        "lack": expected.keys() - theirs.keys(),
        "have no place for": theirs.keys() - expected.keys(),
        "have another shape of": {name for name in other if name not in scalars or theirs[name].numel() != 1},
    }
    if listed := [f"{fault} {some_names(sorted(names))}" for fault, names in faults.items() if names]:
        raise InputError(f"{file}: the weights do not fit {CONFIG}: they {' and '.join(listed)}; take a whole model")


def _file(folder: Path) -> Path:
    found = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if found is None:
        raise InputError(f"{folder} has no weights: none of {', '.join(_FILES)}; take a whole model")
    return found


def _read(file: Path) -> "dict[str, Tensor]":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        stored: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} holds more than tensors, and could run a program; it was not opened, take one with safetensors"
        ) from error
    except (SafetensorError, OSError, RuntimeError, ValueError, LookupError, EOFError) as error:
        raise InputError(f"{file} cannot be read ({_line(error)}); take a whole model") from error
    if isinstance(stored, Mapping):
        stored = stored.get("state_dict", stored)
    if not isinstance(stored, Mapping) or not all(isinstance(one, torch.Tensor) for one in stored.values()):
        raise InputError(f"{file} is no table of tensors by name; take a whole model")
    return {str(name): tensor for name, tensor in stored.items()}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _towers(folder: Path) -> "Towers":
    from clipx.models.key_maps.open_clip import Towers

    model, vision, text = sections(folder)
    transformers_text = bool(text.get("hf_model_name"))
    return Towers(
        timm_image=bool(vision.get("timm_model_name")),
        norm_after_pool=vision.get("pool_type") == "avg" and bool(vision.get("final_ln_after_pool")),
        transformers_text=transformers_text,
        text_bias=bool(text.get("proj_bias")),
        custom_text=bool(model.get("custom_text")) or transformers_text,
    )


def _as_written_now(weights: "dict[str, Tensor]", towers: "Towers") -> "dict[str, Tensor]":
    """The weights under the names that open_clip gives them today, as it renames older files."""
    if next(iter(weights), "").startswith("module."):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    if towers.custom_text and "positional_embedding" in weights:
        weights = {f"text.{name}" if name.startswith(_OWN_TEXT) else name: tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in weights.items() if not name.endswith(_NO_WEIGHT)}
