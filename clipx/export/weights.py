"""Stores the weights of an export in the dtype that was asked for."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from clipx.errors import InputError
from clipx.export.options import ExportOptions
from clipx.models.clip import CLIP

_LARGEST = torch.finfo(torch.float16).max


def save_weights(weights: Mapping[str, Tensor], path: Path, options: ExportOptions) -> None:
    """Writes a safetensors file; with `dtype=fp16` every weight in half precision."""
    half = options.dtype == "fp16"
    stored = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    save_file(stored, path, {"format": "pt"})


def round_to_half(model: CLIP) -> None:
    """Rounds every weight to what half precision can say, in place; the dtype stays.

    Raises:
        InputError: a weight is too large for half precision.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (largest := parameter.abs().max().item()) > _LARGEST:
                raise InputError(
                    f"--dtype fp16: {name} has a weight of {largest:.3g}, and the largest number of half precision is "
                    f"{_LARGEST:.0f}; export with --dtype fp32"
                )
            parameter.copy_(parameter.half())
