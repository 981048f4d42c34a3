"""Fitted models of a few thousand weights, whose config is resolved by hand."""

from pathlib import Path
from typing import Any

import torch
from tiny_clip import CLIP_VOCABULARY, tiny_model_config

from clipx.config.fit import FitConfig
from clipx.config.load import as_config
from clipx.config.sections import as_tree
from clipx.models.fused import build_fused_model
from clipx.pretrained import Pretrained

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
