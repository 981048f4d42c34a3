"""What a program needs of pictures and texts, made as those who serve one make it: from the files of the export.

Shapes: B images, N texts, L tokens, S image size.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor


def pixel_values(folder: Path, pictures: Sequence[Image.Image]) -> np.ndarray:
    """Resized, cropped and normalised as preprocessor_config.json says: float32 (B, 3, S, S)."""
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = (np.array(settings[name], dtype=np.float32) for name in ("image_mean", "image_std"))
    return ((squares(folder, pictures).astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)


def squares(folder: Path, pictures: Sequence[Image.Image]) -> np.ndarray:
    """Resized and cropped as preprocessor_config.json says: uint8 (B, S, S, 3)."""
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    return np.stack([np.asarray(_square(picture.convert("RGB"), settings)) for picture in pictures])


def token_rows(folder: Path, texts: Sequence[str], *, length: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, both int64 (N, L), by transformers' AutoTokenizer.

    Args:
        folder: of the export.
        texts: at least one.
        length: L; None means that of the longest text, at least 2.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    rows = tokenizer(list(texts), truncation=True, max_length=length or tokenizer.model_max_length)["input_ids"]
    length = length or max(2, *map(len, rows))
    ids_NL = np.full((len(rows), length), tokenizer.pad_token_id or 0, dtype=np.int64)
    mask_NL = np.zeros_like(ids_NL)
    for i, row in enumerate(rows):
        ids_NL[i, : len(row)] = row
        mask_NL[i, : len(row)] = 1
    return ids_NL, mask_NL


def unpadded(ids_NL: np.ndarray, mask_NL: np.ndarray) -> list[list[int]]:
    """The ids of each text alone."""
    return [ids[: mask.sum()].tolist() for ids, mask in zip(ids_NL, mask_NL, strict=True)]


def require_finite(*outputs: Tensor | None) -> None:
    """Checks outputs for which no difference is too large: in few bits numbers may leave their range.

    Raises:
        ValueError: infinity, or NaN.
    """
    if any(values is not None and not values.isfinite().all() for values in outputs):
        raise ValueError("it gives numbers that are not finite")


def _square(picture: Image.Image, settings: dict[str, Any]) -> Image.Image:
    size, resample = settings["size"], Image.Resampling(settings["resample"])
    if "shortest_edge" not in size:
        return picture.resize((size["width"], size["height"]), resample)
    edge, (width, height) = size["shortest_edge"], picture.size
    short = min(width, height)
    picture = picture.resize((int(edge * width / short), int(edge * height / short)), resample)
    left, top = (round((side - edge) / 2) for side in picture.size)
    return picture.crop((left, top, left + edge, top + edge))
