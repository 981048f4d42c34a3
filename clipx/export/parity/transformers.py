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

from clipx.export.parity.consumer import Consumer, Outputs, batches, library_version

_PIL = ("load the processor with backend='pil': the default backend resizes with other roundings",)


def _library() -> str | None:
    return library_version("transformers", "transformers")


def _has_model(folder: Path) -> bool:
    return _model_type(folder) == "clip"


def _model_type(folder: Path) -> str | None:
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None


@torch.no_grad()
def _whole(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Outputs:
    from transformers import CLIPModel, CLIPProcessor

    with _without_progress_bar():
        model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    written = processor.tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
    pixels_B3SS = torch.cat(
        [processor.image_processor(some, return_tensors="pt")["pixel_values"] for some in batches(pictures)]
    )
    image = [model.get_image_features(pixel_values=some).pooler_output for some in pixels_B3SS.split(32)]
    image_BD = torch.nn.functional.normalize(torch.cat(image), dim=-1)
    result = model(**written, pixel_values=pixels_B3SS[:1])
    return Outputs(
        pixels_B3SS=pixels_B3SS,
        tokens=_until_padding(written),
        image_BD=image_BD,
        text_ND=result.text_embeds,
        logits_BN=model.logit_scale.exp() * image_BD @ result.text_embeds.T,
    )


def _until_padding(written: Any) -> list[list[int]]:
    lengths = written["attention_mask"].sum(dim=1).tolist()
    return [row[:length].tolist() for row, length in zip(written["input_ids"], lengths, strict=True)]


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
        name="transformers CLIPModel",
        library=_library,
        applies=_has_model,
        outputs=_whole,
        crop="floor",
        notes=_PIL,
    ),
)
