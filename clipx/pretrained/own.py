"""The weights of a model under our own names: what `clipx average` writes beside the config of an export."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clipx.config.model import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "clipx_model.safetensors"


def read_weights(folder: Path, config: ModelConfig) -> "dict[str, Tensor]":
    """The folder's weights; the names need no `config`.

    Raises:
        InputError: the file is broken.
    """
    from clipx.pretrained.weight_files import read_tensors

    return read_tensors(folder, (WEIGHTS,))


def write_weights(tensors: "Mapping[str, Tensor]", folder: Path) -> None:
    """Writes the weights; tensors that share memory are written apart."""
    import torch
    from safetensors.torch import save_file

    apart = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(apart, folder / WEIGHTS, {"format": "pt"})
