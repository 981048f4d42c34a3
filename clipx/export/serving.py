"""What those who serve a model need beside its program: how a picture and a text become numbers, as files.

They are those of the format hf, which every consumer reads; where that format cannot hold the model, they are written
without its config.json.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from clipx.config.model import HuggingFaceTextConfig, TimmImageConfig
from clipx.data.tokenizer import ClipTokenizer, HuggingFaceTokenizer
from clipx.export import huggingface
from clipx.export.huggingface_config import PAD
from clipx.export.options import ExportOptions
from clipx.export.plain import padded_length
from clipx.models.huggingface_text import save_encoder_config
from clipx.pretrained import Pretrained
from clipx.pretrained.stored_model import TEXT_ENCODER

PREPROCESSOR = "preprocessor_config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers, by which transformers knows them."""


def write_serving(pretrained: Pretrained, folder: Path, options: ExportOptions) -> None:
    """Writes preprocessor, tokenizer and, where transformers has a class for the model, config.json, if not there."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".serving") as name:
        draft = Path(name)
        if huggingface.problem(pretrained, options.only) is None:
            huggingface.write(pretrained, draft, options)
            for weights in draft.glob("*.safetensors*"):
                weights.unlink()
        else:
            write_plain(pretrained, draft, options)
        for path in sorted(draft.iterdir()):
            if not (folder / path.name).exists():
                shutil.move(path, folder / path.name)


def serving_settings(pretrained: Pretrained) -> dict[str, Any]:
    """What the program of a tower does not say: `logit_scale`, `logit_bias`, and `text_length`, of all padded texts."""
    bias = pretrained.model.logit_bias
    return {
        "logit_scale": pretrained.logit_scale,
        "logit_bias": None if bias is None else bias.item(),
        "text_length": padded_length(pretrained.config.text),
    }


def own_padding(pretrained: Pretrained) -> tuple[str, int] | None:
    """The token that pads, and its id, where CLIP's tokenizer fills texts up: the folder has one for that alone."""
    fills = padded_length(pretrained.config.text) is not None and isinstance(pretrained.tokenizer, ClipTokenizer)
    return PAD if fills else None


def write_plain(pretrained: Pretrained, folder: Path, options: ExportOptions) -> None:
    """Writes preprocessor and tokenizer without what says that transformers has a class for the model."""
    if options.only != "text":
        (folder / PREPROCESSOR).write_text(json.dumps(_preprocessor(pretrained.config.image), indent=2) + "\n")
    if options.only != "image":
        tokenizer = pretrained.tokenizer
        if isinstance(tokenizer, ClipTokenizer):
            tokenizer.save(folder, pad=own_padding(pretrained))
        elif isinstance(tokenizer, HuggingFaceTokenizer):
            tokenizer.save(folder, cleaned=True)
        else:
            tokenizer.save(folder)
        path = folder / _TOKENIZER_CONFIG
        described = json.loads(path.read_text(encoding="utf-8"))
        described["model_max_length"] = tokenizer.context_length  # a tokenizer's own may be longer
        path.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_text_encoder(pretrained: Pretrained, folder: Path) -> None:
    """Writes config and tokenizer of a transformers text encoder to where clipx looks for them in an export."""
    text = pretrained.config.text
    if isinstance(text, HuggingFaceTextConfig):
        save_encoder_config(text.name, folder / TEXT_ENCODER)
        pretrained.tokenizer.save(folder / TEXT_ENCODER)


def _preprocessor(image: TimmImageConfig) -> dict[str, Any]:
    square = {"height": image.image_size, "width": image.image_size}
    squash = image.resize == "squash"
    return {
        "image_processor_type": "SiglipImageProcessor" if squash else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if squash else {"shortest_edge": image.image_size},
        "resample": _RESAMPLE[image.interpolation],
        "do_center_crop": not squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
