"""What transformers computes from an export: with its whole models, one tower alone, and its pipeline.

Shapes: B images, N texts, S image size, D embedding, L tokens.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clipx.export.huggingface_config import PAD
from clipx.export.parity.consumer import Consumer, Outputs, batches, library_version
from clipx.pretrained.huggingface_config import LOGIT_BIAS

_PIL = ("load the processor with backend='pil': the default backend resizes with other roundings",)


def _library() -> str | None:
    return library_version("transformers", "transformers")


def _has_model(folder: Path) -> bool:
    return _model_type(folder) == "clip"


def _has_siglip(folder: Path) -> bool:
    return _model_type(folder) == "siglip"


def _model_type(folder: Path) -> str | None:
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None


@torch.no_grad()
def _whole(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Outputs:
    from transformers import AutoModel, AutoProcessor

    with _without_progress_bar():
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    siglip = _has_siglip(folder)
    padding = "max_length" if siglip else True  # SigLIP sees and pools what texts are filled up with
    written = processor.tokenizer(list(texts), return_tensors="pt", padding=padding, truncation=True)
    pixels_B3SS = torch.cat(
        [processor.image_processor(some, return_tensors="pt")["pixel_values"] for some in batches(pictures)]
    )
    image = [model.get_image_features(pixel_values=some).pooler_output for some in pixels_B3SS.split(32)]
    image_BD = torch.nn.functional.normalize(torch.cat(image), dim=-1)
    result = model(**written, pixel_values=pixels_B3SS[:1])
    logits_BN = model.logit_scale.exp() * image_BD @ result.text_embeds.T
    # a CLIP trained with the sigmoid loss has its bias in the config, since the class has no place for it
    bias = model.logit_bias if siglip else getattr(model.config, LOGIT_BIAS, None)
    return Outputs(
        pixels_B3SS=pixels_B3SS,
        tokens=_whole_rows(processor.tokenizer, written) if siglip else _until_end(model, written),
        image_BD=image_BD,
        text_ND=result.text_embeds,
        logits_BN=logits_BN if bias is None else logits_BN + bias,
    )


def _until_end(model: Any, written: Any) -> list[list[int]]:
    """Each text up to its first end token, where CLIP pools."""
    end = model.config.text_config.eos_token_id
    return [row[: row.index(end) + 1] for row in written["input_ids"].tolist()]


def _whole_rows(tokenizer: Any, written: Any) -> list[list[int]]:
    """Each text with what fills it up, which with CLIP's tokenizer is id 0 in the model itself."""
    as_here = {PAD[1]: 0} if tokenizer.pad_token == PAD[0] else {}
    return [[as_here.get(number, number) for number in row] for row in written["input_ids"].tolist()]


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


CONSUMERS = (
    Consumer(
        name="transformers SiglipModel",
        library=_library,
        applies=_has_siglip,
        outputs=_whole,
        crop="floor",
        notes=_PIL,
    ),
    Consumer(
        name="transformers CLIPModel",
        library=_library,
        applies=_has_model,
        outputs=_whole,
        crop="floor",
        notes=_PIL,
    ),
)
