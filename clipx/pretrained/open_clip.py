"""Models of open_clip: their config, and their weights under our names."""

from pathlib import Path
from typing import TYPE_CHECKING

from clipx.config.model import CLIP_VOCABULARY, ModelConfig, TransformerTextConfig
from clipx.pretrained.open_clip_config import read_config, sections

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

    from clipx.pretrained.weight_files import read_tensors
    from clipx.pretrained.whole_weights import check_whole, expected_shapes

    theirs = _as_written_now(read_tensors(folder, _FILES), _towers(folder))
    if config.init_logit_bias is not None:  # weights of a model without one: open_clip begins with 0
        theirs.setdefault("logit_bias", torch.zeros(1))
    names = names_of(folder)
    own_text = isinstance(config.text, TransformerTextConfig)  # an encoder of transformers has its own vocabulary
    vocab_size = sections(folder)[2].get("vocab_size", CLIP_VOCABULARY) if own_text else 1
    expected = expected_shapes(names, config, vocab_size=vocab_size)
    check_whole(theirs, expected, place=folder, scalars=("logit_scale", "logit_bias"))
    return names.to_ours(theirs)


def names_of(folder: Path) -> "KeyMap":
    """The map between our names and open_clip's for the model that a folder's config describes."""
    from clipx.models.key_maps.open_clip import key_map

    return key_map(_towers(folder))


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
