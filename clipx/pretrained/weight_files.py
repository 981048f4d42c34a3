"""Files of weights as other libraries write them: safetensors or torch's, whole or in parts; read as data."""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipx.errors import InputError
from clipx.pretrained.json_file import read_json


def read_tensors(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """All tensors of the first of these files that is there, in float32 where they are floats.

    Args:
        folder: of the model.
        names: of files, e.g. model.safetensors; of one in parts there is NAME.index.json.

    Raises:
        InputError: there is none, one cannot be read, or a file of torch holds more than tensors.
    """
    for name in names:
        if (folder / name).is_file():
            return _float32(_read(folder / name))
        if (folder / f"{name}.index.json").is_file():
            return _float32(_read_parts(folder / f"{name}.index.json"))
    raise InputError(f"{folder} has no weights; there must be {' or '.join(names)}")


def _float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _read_parts(index: Path) -> dict[str, Tensor]:
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise InputError(f"{index} has no `weight_map` from names to files; fetch it again")
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        if Path(part).name != part or not (index.parent / part).is_file():
            raise InputError(f"{index} names {part!r}, which is no file beside it; fetch it")
        tensors |= _read(index.parent / part)
    return tensors


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read ({_line(error)}); fetch it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InputError(
            f"{path} is a pickle of more than tensors{f', it names {named[1]}' if named else ''}; it could run a "
            "program and is not read; give model.safetensors, or a file of tensors alone"
        ) from error
    except Exception as error:  # a damaged file fails in many ways
        raise InputError(f"{path} cannot be read ({_line(error)}); fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, no tensors by name; give a file of weights")
    if other := [str(name) for name, value in content.items() if not isinstance(value, Tensor)]:
        raise InputError(f"{path} holds more than tensors, {other[0]!r} first; give a file of weights")
    return content


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
