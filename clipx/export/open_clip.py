"""The export for open_clip: writes its files, and computes its outputs from them.

The exported model uses open_clip's VisionTransformer, not its wrapper of timm, so `local-dir:` builds it without timm.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError
from clipx.export.parity import Outputs
from clipx.export.shape import ClipShape, TowerShape
from clipx.models.key_maps.open_clip import CLIP
from clipx.pretrained import Pretrained
from clipx.pretrained.open_clip import WEIGHTS

NOTES: tuple[str, ...] = ()
"""Notes in parity.json for people who use the export with open_clip: none, since preprocessing and tokens are equal."""


def library() -> str | None:
    """Name and version of the library; None if it is not installed."""
    return f"open_clip_torch {version('open_clip_torch')}" if find_spec("open_clip") else None


def write(pretrained: Pretrained, shape: ClipShape, folder: Path) -> None:
    """Writes config and weights for `open_clip.create_model_from_pretrained("local-dir:FOLDER")`.

    Raises:
        InputError: the towers have different activations, and open_clip has one setting for both.
    """
    if shape.vision.quick_gelu != shape.text.quick_gelu:
        raise InputError("open_clip has one activation for both towers, these differ; use --format hf")
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
    save_file(CLIP.to_theirs(pretrained.model.state_dict()), folder / WEIGHTS, {"format": "pt"})


@torch.no_grad()
def outputs(folder: Path, images: Sequence[Image.Image], texts: Sequence[str]) -> Outputs:
    """The outputs of open_clip for images and texts, computed only from the files in `folder`."""
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    pixels_B3SS = torch.stack([preprocess(image) for image in images])
    tokens_BL = open_clip.get_tokenizer(f"local-dir:{folder}")(list(texts))
    model.eval()
    logits_BN, _ = model.get_logits(pixels_B3SS, tokens_BL)
    return Outputs(
        pixels_B3SS=pixels_B3SS,
        tokens=[_until_end(row) for row in tokens_BL.tolist()],
        image_BD=model.encode_image(pixels_B3SS, normalize=True),
        text_ND=model.encode_text(tokens_BL, normalize=True),
        logits_BN=logits_BN,
    )


def _until_end(row: list[int]) -> list[int]:
    return row[: row.index(ClipTokenizer.end_id) + 1]


def _tower(tower: TowerShape) -> dict[str, Any]:
    ratio = tower.hidden / tower.width
    if int(tower.width * ratio) != tower.hidden:  # open_clip rounds the product down
        ratio = (tower.hidden + 0.5) / tower.width
    return {"width": tower.width, "layers": tower.layers, "mlp_ratio": ratio, "norm_kwargs": {"eps": tower.eps}}
