"""The export for transformers: writes its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError
from clipx.export.huggingface_config import PAD, config_of, family_of
from clipx.export.options import ExportOptions, Tower
from clipx.export.parity import sentence_transformers, transformers
from clipx.export.weights import save_weights
from clipx.models.key_maps.huggingface import CLIP, SIGLIP
from clipx.pretrained import Pretrained
from clipx.pretrained.huggingface import TOKEN_TABLE, WEIGHTS
from clipx.pretrained.timm_names import Family

CONSUMERS = (*transformers.CONSUMERS, *sentence_transformers.CONSUMERS)
"""Who loads the folder."""


def problem(pretrained: Pretrained, only: Tower | None = None) -> str | None:
    """Why transformers has no class for a model, or for its one tower; None: it has."""
    try:
        family = family_of(pretrained, only)
        _weights({name: value.to("meta") for name, value in pretrained.model.state_dict().items()}, family, only)
    except InputError as error:
        return str(error)
    return None


def write(pretrained: Pretrained, folder: Path, options: ExportOptions) -> None:
    """Writes config, weights, processor and tokenizer for `CLIPModel` or `SiglipModel` and the Auto classes.

    With `only`, those of the class of one tower: `CLIPVisionModelWithProjection`, `SiglipTextModel` and so on.
    """
    family = family_of(pretrained, options.only)
    config = config_of(pretrained, family, options.only)
    weights = _weights(pretrained.model.state_dict(), family, options.only)
    if TOKEN_TABLE in weights and getattr(config, "text_config", config).vocab_size > len(weights[TOKEN_TABLE]):
        weights[TOKEN_TABLE] = torch.cat([weights[TOKEN_TABLE], weights[TOKEN_TABLE][:1]])
    config.dtype = "float16" if options.dtype == "fp16" else "float32"
    config.save_pretrained(folder)
    save_weights(weights, folder / WEIGHTS, options)
    if options.only != "image":
        _save_tokenizer(pretrained, family, folder)
    if options.only != "text":
        _save_processor(pretrained, family, folder, whole=options.only is None)


def _weights(ours: Mapping[str, Tensor], family: Family, only: Tower | None) -> dict[str, Tensor]:
    """Under transformers' names; a CLIP's bias of the logits stands in its config, a SigLIP without one gets 0."""
    bias = "logit_bias"
    if only:
        ours = {name: value for name, value in ours.items() if name.startswith(f"{only}_tower.")}
        return (CLIP if family == "clip" else SIGLIP).to_theirs(ours)
    if family == "clip":
        return CLIP.to_theirs({name: value for name, value in ours.items() if name != bias})
    return SIGLIP.to_theirs({bias: torch.zeros(1), **ours})


def _save_tokenizer(pretrained: Pretrained, family: Family, folder: Path) -> None:
    tokenizer = pretrained.tokenizer
    if family == "siglip" and isinstance(tokenizer, ClipTokenizer):
        tokenizer.save(folder, pad=PAD)
    else:
        tokenizer.save(folder)


def _save_processor(pretrained: Pretrained, family: Family, folder: Path, *, whole: bool) -> None:
    """Writes how pictures are prepared, and with the tokenizer the file of the two together."""
    from transformers import AutoTokenizer, CLIPProcessor, SiglipProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    image = pretrained.config.image
    square = {"height": image.image_size, "width": image.image_size}
    settings: dict[str, Any] = {
        "size": square if image.resize == "squash" else {"shortest_edge": image.image_size},
        "resample": 2 if image.interpolation == "bilinear" else 3,  # Pillow's numbers
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
    if image.resize == "shortest":
        settings |= {"do_center_crop": True, "crop_size": square}
    elif family == "clip":
        settings |= {"do_center_crop": False}
    pictures: Any = (CLIPImageProcessorPil if family == "clip" else SiglipImageProcessorPil)(**settings)
    pictures.save_pretrained(folder)
    if whole:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # another class changes its rules
        processor: Any = CLIPProcessor if family == "clip" else SiglipProcessor
        processor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
        _save_tokenizer(pretrained, family, folder)  # again: transformers 4 lacks the class that the processor names
