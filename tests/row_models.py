"""Fitted models of a few thousand random weights, for tests of what they predict of rows."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from tiny_clip import CLIP_VOCABULARY, tiny_model_config

from clipx.config.fit import FitConfig
from clipx.config.validate import validate
from clipx.models.fused import build_fused_model
from clipx.pretrained import Fitted

INPUTS: dict[str, Any] = {
    "photo": {"type": "image"},
    "title": {"type": "text", "columns": ["title", "brand"]},
    "weight": {"type": "number", "mean": 5.0, "std": 2.0},
    "shop": {"type": "category", "classes": ["north", "south"]},
}
TARGETS: dict[str, Any] = {
    "shape": {"type": "class", "classes": ["disc", "ring", "star"], "counts": [3, 4, 5]},
    "price": {"type": "number", "transform": "log", "mean": 2.0, "std": 0.5},
    "tags": {"type": "labels", "separator": "|", "classes": ["new", "sale"], "counts": [6, 7]},
}


def resolved_config(
    *, inputs: Mapping[str, Any] = INPUTS, targets: Mapping[str, Any] = TARGETS, **further: Any
) -> FitConfig:
    """A resolved config of a fit run that was never trained."""
    tree = {
        "job": "fit",
        "run_dir": "runs/fit",
        "global_batch_size": 8,
        "data": {"train": "table.csv", "train_shards": ["a.tar"], "val_shards": ["b.tar"], "num_train": 12},
        "inputs": dict(inputs),
        "targets": dict(targets),
        "encoder": asdict(tiny_model_config()),
        "head": {"hidden": [16]},
    }
    return validate(FitConfig, tree | further)


def fitted_model(config: FitConfig | None = None, *, seed: int = 0) -> Fitted:
    """A model whose every weight is random, as after training."""
    config = config or resolved_config()
    model = build_fused_model(config, vocab_size=CLIP_VOCABULARY)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in ("scale_M", "log_logit_scale"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return Fitted(model.eval(), config)
