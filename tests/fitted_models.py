"""Fitted models of a few thousand weights, whose config is resolved by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fit_tables import fit_config
from safetensors.torch import save_file
from tiny_clip import CLIP_VOCABULARY, tiny_model_config

from clipx.checkpoint.find import EXPORT_CONFIG
from clipx.config.fit import FitConfig
from clipx.config.load import dump_config
from clipx.config.sections import as_tree
from clipx.models.fused import build_fused_model
from clipx.pretrained.fitted import Fitted
from clipx.pretrained.own import WEIGHTS

INPUTS: dict[str, Any] = {
    "photo": {"type": "image"},
    "title": {"type": "text", "columns": ["title", "brand"]},
    "weight": {"type": "number", "mean": 1e6, "std": 0.5},
    "height": {"type": "number", "mean": -2.0, "std": 3.0},
    "shop": {"type": "category", "classes": ["corner", "market"]},
}
TARGETS: dict[str, Any] = {
    "category": {"type": "class", "classes": ["ball", "cup", "hat"], "counts": [3, 4, 5]},
    "price": {"type": "number", "transform": "log", "mean": 3.0, "std": 0.8},
    "size": {"type": "number", "mean": 1e4, "std": 50.0},
    "tags": {"type": "labels", "classes": ["new", "sale"], "counts": [2, 6]},
}
FOUND = {"train": "table.csv", "train_shards": ["train.tar"], "val_shards": ["val.tar"], "num_train": 12}


def resolved_config(
    inputs: Mapping[str, Any] = INPUTS,
    targets: Mapping[str, Any] = TARGETS,
    *,
    text: dict[str, Any] | None = None,
    **further: Any,
) -> FitConfig:
    """A config of which nothing is left to be found."""
    model = as_tree(tiny_model_config(text={"layers": 1} | (text or {})))
    return fit_config(inputs, targets, **{"encoder": model, "data": FOUND, "head": {"hidden": [16]}} | further)


def fitted(config: FitConfig | None = None, *, seed: int = 0) -> Fitted:
    """A model whose every weight is random, as after training."""
    config = config or resolved_config()
    model = build_fused_model(config, vocab_size=CLIP_VOCABULARY)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return Fitted(model.eval(), config)


def stored(folder: Path, model: Fitted) -> Path:
    """A MODEL with these weights."""
    folder.mkdir(parents=True)
    (folder / EXPORT_CONFIG).write_text(dump_config(model.fit_config))
    save_file({name: tensor.clone() for name, tensor in model.model.state_dict().items()}, folder / WEIGHTS)
    return folder
