"""What the programs of torch.export compute, loaded again.

Shapes: B images, N texts.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipx.export.parity.consumer import BATCH, LIMIT, Consumer, Outputs, library_version
from clipx.export.parity.serving import pixel_values, require_finite, token_rows, unpadded
from clipx.export.parity.transformers import as_padded

FOLDER = "pt2"
PROGRAMS = {"image": "image_encoder", "text": "text_encoder"}
SUFFIXES = {"fp32": "", "fp16": "_fp16"}
"""Of the files' names."""
SETTINGS = "settings.json"
"""The file inside of each."""


def _library() -> str | None:
    return library_version("torch", "torch")


def _applies(folder: Path, *, suffix: str) -> bool:
    return any(program_file(folder, tower, suffix).is_file() for tower in PROGRAMS)


def program_file(folder: Path, tower: str, suffix: str) -> Path:
    """The file of a tower's program in an export."""
    return folder / FOLDER / f"{PROGRAMS[tower]}{suffix}.pt2"


@torch.no_grad()
def _outputs(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str], *, suffix: str) -> Outputs:
    image_file, text_file = (program_file(folder, tower, suffix) for tower in PROGRAMS)
    pixels_B3SS = image_BD = tokens = text_ND = logits_BN = None
    settings: dict[str, Any] = {}
    if image_file.is_file():
        encode, settings = _load(image_file)
        pixels_B3SS = torch.from_numpy(pixel_values(folder, pictures))
        image_BD = torch.cat([encode(some) for some in pixels_B3SS.split(BATCH)])
    if text_file.is_file():
        encode, settings = _load(text_file)
        length = settings["text_length"]
        ids_NL, mask_NL = token_rows(folder, texts, length=length)
        tokens = unpadded(ids_NL, mask_NL) if length is None else [as_padded(row, folder) for row in ids_NL.tolist()]
        inputs = [torch.from_numpy(x).split(BATCH) for x in ((ids_NL, mask_NL) if length is None else (ids_NL,))]
        text_ND = torch.cat([encode(*some) for some in zip(*inputs, strict=True)])
    if image_BD is not None and text_ND is not None:
        logits_BN = settings["logit_scale"] * image_BD @ text_ND.T + (settings["logit_bias"] or 0.0)
    require_finite(image_BD, text_ND)
    return Outputs(pixels_B3SS=pixels_B3SS, tokens=tokens, image_BD=image_BD, text_ND=text_ND, logits_BN=logits_BN)


def _load(path: Path) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    extra = {SETTINGS: ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), json.loads(extra[SETTINGS])


CONSUMERS = tuple(
    Consumer(
        name="torch.export" if dtype == "fp32" else f"torch.export {dtype}",
        library=_library,
        applies=partial(_applies, suffix=suffix),
        outputs=partial(_outputs, suffix=suffix),
        limit=LIMIT if dtype == "fp32" else None,
    )
    for dtype, suffix in SUFFIXES.items()
)
