"""The folder of an average: whole, and loaded once, before it has its name.

    clipx_config.yaml         the config of the first model, as in an export, under a heading that says what went in
    clipx_model.safetensors   the weights by our names
    average.json              what went in: models, checksums, shares, scores; the mark of the folder

Nothing outside the folder is needed: where texts are not CLIP's it has the tokenizer, and the text encoder's config.
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
from clipx.export.serving import write_text_encoder
from clipx.pretrained import Pretrained, load
from clipx.pretrained.own import write_weights
from clipx.printable import printable
from clipx.storage.drafts import draft_of


def write_average(
    to: Path, tensors: Mapping[str, Tensor], model: Pretrained, *, config_text: str, record: dict[str, Any]
) -> None:
    """Writes `to`, replacing an earlier average there; until the new one is whole `to` does not change.

    Args:
        tensors: the weights, on the CPU.
        model: has their architecture, and the tokenizer.
        config_text: of the config file, without a heading.
        record: of average.json; gets the checksums of the files.

    Raises:
        InputError: `to` holds other files or cannot be written, or another process writes it.
        RunError: what was written does not load as these weights.
    """
    with readable_errors(to), draft_of(to) as draft:
        write_weights(tensors, draft)
        (draft / EXPORT_CONFIG).write_text(_heading(record) + config_text, encoding="utf-8")
        _write_texts(model, draft)
        _check(draft, tensors)
        publish(draft, to, record, AVERAGE)


def _heading(record: Mapping[str, Any]) -> str:
    """What went in, as the first lines of the config."""
    alpha = record.get("alpha", 1.0)
    parts = [(1 - alpha, record["start"])] if "start" in record else []
    parts += [(alpha * entry["share"], entry) for entry in record["models"] if entry["share"]]
    lines = [f"{share:.6g} of {printable(entry['model'])}, weights {entry['sha256'][:16]}" for share, entry in parts]
    return "".join(f"# {line}\n" for line in [f"An average; {AVERAGE.name} tells of it in full:", *lines])


def _write_texts(model: Pretrained, folder: Path) -> None:
    """The tokenizer, and the config of the text encoder; of CLIP's own there is nothing to write."""
    text = model.config.text
    if isinstance(text, HuggingFaceTextConfig):
        write_text_encoder(model, folder)
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
