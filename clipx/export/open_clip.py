"""The export for open_clip: writes its files.

The exported model uses open_clip's VisionTransformer, not its wrapper of timm, so `local-dir:` builds it without timm.
"""

import json
from pathlib import Path
from typing import Any

from clipx.errors import InputError
from clipx.export.options import ExportOptions
from clipx.export.parity.open_clip import CONSUMERS
from clipx.export.shape import TowerShape, read_shape
from clipx.export.weights import save_weights
from clipx.models.key_maps.open_clip import CLIP
from clipx.pretrained import Pretrained
from clipx.pretrained.open_clip import WEIGHTS

__all__ = ["CONSUMERS", "problem", "write"]


def problem(pretrained: Pretrained) -> str | None:
    """Why open_clip has no class for a model; None: it has."""
    try:
        shape = read_shape(pretrained)
        CLIP.to_theirs(pretrained.model.state_dict())
    except InputError as error:
        return str(error)
    if shape.vision.quick_gelu != shape.text.quick_gelu:
        return "open_clip has one activation for both towers, these differ; use --format hf"
    return None


def write(pretrained: Pretrained, folder: Path, options: ExportOptions) -> None:
    """Writes config and weights for `open_clip.create_model_from_pretrained("local-dir:FOLDER")`."""
    shape = read_shape(pretrained)
    config: dict[str, Any] = {
        "model_cfg": {
            "embed_dim": shape.embed_dim,
            "quick_gelu": shape.vision.quick_gelu,
            "vision_cfg": _tower(shape.vision)
            | {
                "head_width": shape.vision.width // shape.vision.heads,
                "image_size": shape.image_size,
                "patch_size": shape.patch_size,
            },
            "text_cfg": _tower(shape.text)
            | {"heads": shape.text.heads, "context_length": shape.context_length, "vocab_size": shape.vocab_size},
        },
        "preprocess_cfg": {
            "mean": list(shape.mean),
            "std": list(shape.std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    bias = pretrained.model.logit_bias
    if bias is not None:  # open_clip builds the parameter only if the config has this key
        config["model_cfg"]["init_logit_bias"] = bias.item()
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_weights(CLIP.to_theirs(pretrained.model.state_dict()), folder / WEIGHTS, options)


def _tower(tower: TowerShape) -> dict[str, Any]:
    ratio = tower.hidden / tower.width
    if int(tower.width * ratio) != tower.hidden:  # open_clip rounds the product down
        ratio = (tower.hidden + 0.5) / tower.width
    return {"width": tower.width, "layers": tower.layers, "mlp_ratio": ratio, "norm_kwargs": {"eps": tower.eps}}
