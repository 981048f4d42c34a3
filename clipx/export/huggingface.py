"""The export for transformers: writes its files, and computes its outputs from them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from clipx.data.text_cleaning import clean
from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError
from clipx.export.parity import Outputs
from clipx.export.shape import ClipShape, TowerShape
from clipx.models.key_maps.huggingface import CLIP
from clipx.pretrained import Pretrained
from clipx.pretrained.huggingface import WEIGHTS

NOTES = (
    "load the processor with backend='pil': the default backend resizes with other roundings, up to 0.015 a pixel",
    "where a resized picture is 4n + 3 pixels longer than the model's size, the centre is cut one pixel aside",
    "texts with HTML entities or broken encoding have the same token ids after clipx.data.text_cleaning.clean only",
)
"""Notes in parity.json for people who use the export with transformers."""


def library() -> str:
    """Name and version of the library."""
    return f"transformers {version('transformers')}"


def write(pretrained: Pretrained, shape: ClipShape, folder: Path) -> None:
    """Writes config, weights, processor and tokenizer for `CLIPModel`, `CLIPProcessor` and the Auto classes.

    Raises:
        InputError: the model has a logit bias, which CLIPModel does not support.
    """
    from transformers import CLIPConfig, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    if pretrained.model.logit_bias is not None:
        raise InputError("a model with a logit_bias has no place in transformers' CLIPModel; use --format open_clip")
    config = CLIPConfig(
        text_config=_tower(shape.text, shape)
        | {
            "vocab_size": shape.vocab_size,
            "max_position_embeddings": shape.context_length,
            "bos_token_id": ClipTokenizer.start_id,
            "eos_token_id": ClipTokenizer.end_id,  # the default of old configs, 2, selects another pooling
            "pad_token_id": ClipTokenizer.end_id,
        },
        vision_config=_tower(shape.vision, shape) | {"image_size": shape.image_size, "patch_size": shape.patch_size},
        projection_dim=shape.embed_dim,
        architectures=["CLIPModel"],
        dtype="float32",
    )
    config.save_pretrained(folder)
    save_file(CLIP.to_theirs(pretrained.model.state_dict()), folder / WEIGHTS, {"format": "pt"})
    pretrained.tokenizer.save(folder)
    square = {"height": shape.image_size, "width": shape.image_size}
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": shape.image_size}, crop_size=square, image_mean=shape.mean, image_std=shape.std
    )
    image_processor.save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


@torch.no_grad()
def outputs(folder: Path, images: Sequence[Image.Image], texts: Sequence[str]) -> Outputs:
    """The outputs of transformers for images and texts, computed only from the files in `folder`.

    Texts are cleaned first, because its tokenizer does not clean them.
    """
    from transformers import CLIPModel, CLIPProcessor

    with _without_progress_bar():
        model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    # The default backend, torchvision, rounds differently when it resizes: up to 0.015 per pixel.
    processor = CLIPProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    inputs = processor(
        text=[clean(text) for text in texts], images=list(images), return_tensors="pt", padding=True, truncation=True
    )
    result = model(**inputs)
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    return Outputs(
        pixels_B3SS=inputs["pixel_values"],
        tokens=[row[:length].tolist() for row, length in zip(inputs["input_ids"], lengths, strict=True)],
        image_BD=result.image_embeds,
        text_ND=result.text_embeds,
        logits_BN=result.logits_per_image,
    )


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _tower(tower: TowerShape, shape: ClipShape) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.hidden,
        "hidden_act": "quick_gelu" if tower.quick_gelu else "gelu",
        "layer_norm_eps": tower.eps,
        "projection_dim": shape.embed_dim,
    }
