"""Models of open_clip: their config, and their weights under our names."""

from pathlib import Path
from typing import TYPE_CHECKING

from clipx.config.model import ModelConfig
from clipx.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "open_clip_model.safetensors"


def read_config(folder: Path) -> ModelConfig:
    """The config of a folder's model; needs no torch."""
    raise InputError(f"{folder}: models of open_clip cannot be read yet")


def read_weights(folder: Path, config: ModelConfig) -> "dict[str, Tensor]":
    """The folder's weights under our names.

    Args:
        folder: of a model, or of an export of ours.
        config: of the model, as `read_config` or the export has it.

    Raises:
        InputError: the file is broken, or one of its weights lacks another that belongs to it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from clipx.models.key_maps.open_clip import CLIP

    try:
        return CLIP.to_ours(load_file(folder / WEIGHTS))
    except (SafetensorError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder / WEIGHTS} cannot be read ({reason}); take a whole model") from error
