"""What the programs of torch.export compute, loaded again.

Shapes: B images, N texts.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipx.export.parity.consumer import BATCH, Consumer, Outputs, library_version
from clipx.export.parity.serving import pixel_values, token_rows, unpadded

IMAGE_PROGRAM = "pt2/image_encoder.pt2"
TEXT_PROGRAM = "pt2/text_encoder.pt2"
SETTINGS = "settings.json"
"""The file inside of both."""


def _library() -> str | None:
    return library_version("torch", "torch")


def _applies(folder: Path) -> bool:
    return (folder / IMAGE_PROGRAM).is_file() or (folder / TEXT_PROGRAM).is_file()


@torch.no_grad()
def _outputs(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Outputs:
    pixels_B3SS = image_BD = tokens = text_ND = logits_BN = None
    settings: dict[str, Any] = {}
    if (folder / IMAGE_PROGRAM).is_file():
        encode, settings = _load(folder / IMAGE_PROGRAM)
        pixels_B3SS = torch.from_numpy(pixel_values(folder, pictures))
        image_BD = torch.cat([encode(some) for some in pixels_B3SS.split(BATCH)])
    if (folder / TEXT_PROGRAM).is_file():
        encode, settings = _load(folder / TEXT_PROGRAM)
        length = settings["text_length"]
        ids_NL, mask_NL = token_rows(folder, texts, length=length)
        tokens = unpadded(ids_NL, mask_NL) if length is None else ids_NL.tolist()
        inputs = [torch.from_numpy(x).split(BATCH) for x in ((ids_NL, mask_NL) if length is None else (ids_NL,))]
        text_ND = torch.cat([encode(*some) for some in zip(*inputs, strict=True)])
    if image_BD is not None and text_ND is not None:
        logits_BN = settings["logit_scale"] * image_BD @ text_ND.T + (settings["logit_bias"] or 0.0)
    return Outputs(pixels_B3SS=pixels_B3SS, tokens=tokens, image_BD=image_BD, text_ND=text_ND, logits_BN=logits_BN)


def _load(path: Path) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    extra = {SETTINGS: ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), json.loads(extra[SETTINGS])


CONSUMERS = (Consumer(name="torch.export", library=_library, applies=_applies, outputs=_outputs),)
