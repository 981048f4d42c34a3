"""The folder of an average: whole, and loaded once, before it has its name.

clipx_config.yaml         the config of the first model, as in an export
clipx_model.safetensors   the weights by our names
text_encoder/ or tokenizer files, where texts are not CLIP's: nothing outside the folder is needed
average.json              what went into it: models, checksums, shares, scores; the mark of the folder
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx.checkpoint.find import EXPORT_CONFIG
from clipx.config.model import HuggingFaceTextConfig
from clipx.errors import RunError
from clipx.export.folder import AVERAGE, publish, readable_errors
from clipx.models.huggingface_text import save_encoder_config
from clipx.pretrained import Pretrained, load
from clipx.pretrained.own import write_weights
from clipx.pretrained.stored_model import TEXT_ENCODER
from clipx.storage.drafts import draft_of


def write_average(
    to: Path, tensors: Mapping[str, Tensor], model: Pretrained, *, config_text: str, record: dict[str, Any]
) -> None:
    """Writes `to`, replacing an earlier average there; until the new one is whole `to` does not change.

    Args:
        tensors: the weights, on the CPU.
        model: has their architecture, and the tokenizer.
        config_text: of the config file.
        record: of average.json; gets the checksums of the files.

    Raises:
        InputError: `to` holds other files or cannot be written, or another process writes it.
        RunError: what was written does not load as these weights.
    """
    with readable_errors(to), draft_of(to) as draft:
        write_weights(tensors, draft)
        (draft / EXPORT_CONFIG).write_text(config_text, encoding="utf-8")
        _write_texts(model, draft)
        _check(draft, tensors)
        publish(draft, to, record, AVERAGE)


def _write_texts(model: Pretrained, folder: Path) -> None:
    """The tokenizer, and the config of the text encoder; of CLIP's own there is nothing to write."""
    text = model.config.text
    if isinstance(text, HuggingFaceTextConfig):
        save_encoder_config(text.name, folder / TEXT_ENCODER)
        model.tokenizer.save(folder / TEXT_ENCODER)
    elif text.tokenizer != "clip":
        model.tokenizer.save(folder)


def _check(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    loaded = load(folder).model.state_dict()
    wrong = [name for name, tensor in tensors.items() if not _same_bits(loaded[name], tensor)]
    if wrong:
        raise RunError(f"{wrong[0]} was not stored as it was averaged; nothing was written, please report this")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, the sign of zeros included."""
    return one.dtype == other.dtype and one.view(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8))
