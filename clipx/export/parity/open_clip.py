"""What open_clip computes from an export, by `local-dir:`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clipx.data.tokenizer import ClipTokenizer
from clipx.export.parity.consumer import BATCH, Consumer, Outputs, batches, library_version
from clipx.pretrained.open_clip_config import CONFIG
from clipx.pretrained.stored_model import TEXT_ENCODER


def _library() -> str | None:
    return library_version("open_clip_torch", "open_clip")


def _applies(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


@torch.no_grad()
def _outputs(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Outputs:
    import open_clip

    text_cfg = json.loads((folder / CONFIG).read_bytes())["model_cfg"]["text_cfg"]
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}", **_encoder_of(folder, text_cfg))
    model.eval()
    pixels_B3SS = torch.stack([preprocess(picture) for some in batches(pictures) for picture in some])
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    tokens_NL = tokenizer(list(texts))
    image_BD = torch.cat([model.encode_image(some, normalize=True) for some in pixels_B3SS.split(BATCH)])
    text_ND = torch.cat([model.encode_text(some, normalize=True) for some in tokens_NL.split(BATCH)])
    logits_BN = model.logit_scale.exp() * image_BD @ text_ND.T
    return Outputs(
        pixels_B3SS=pixels_B3SS,
        tokens=[_of_text(row, tokenizer, text_cfg) for row in tokens_NL.tolist()],
        image_BD=image_BD,
        text_ND=text_ND,
        logits_BN=logits_BN if model.logit_bias is None else logits_BN + model.logit_bias,
    )


def _encoder_of(folder: Path, text_cfg: dict[str, Any]) -> dict[str, Any]:
    """The argument with which open_clip takes the text encoder of an export whose name is not yet final."""
    if "hf_model_name" not in text_cfg:
        return {}
    return {"text_cfg": text_cfg | {"hf_model_name": str(folder / TEXT_ENCODER), "hf_model_pretrained": False}}


def _of_text(row: list[int], tokenizer: Any, text_cfg: dict[str, Any]) -> list[int]:
    """A row up to its end: at its end token, before its padding, or whole where padding counts as text."""
    if text_cfg.get("pool_type") == "last":
        return row
    if "hf_tokenizer_name" not in text_cfg:
        return row[: row.index(ClipTokenizer.end_id) + 1]
    if (end := text_cfg.get("eos_id")) in row:
        return row[: row.index(end) + 1]
    pad = tokenizer.tokenizer.pad_token_id
    return row[: max((position for position, token in enumerate(row, start=1) if token != pad), default=0)]


CONSUMERS = (
    Consumer(
        name="open_clip",
        library=_library,
        applies=_applies,
        outputs=_outputs,
        notes=(
            "a text encoder of transformers is named in open_clip_config.json (text_cfg.hf_model_name) by the whole "
            "path of the export's folder text_encoder: write the new path there when the export has been moved",
            "open_clip cleans every text: where training did not (model.text.cleaning), texts with HTML entities, "
            "broken encodings or double spaces have other token ids",
        ),
    ),
)
