"""What ONNX Runtime computes from the graphs of an export, on the CPU.

Shapes: B images, N texts, S image size, D embedding.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from clipx.export.parity.consumer import BATCH, LIMIT, Consumer, Outputs, library_version
from clipx.export.parity.serving import pixel_values, require_finite, token_rows, unpadded
from clipx.export.parity.transformers import as_padded

FOLDER = "onnx"
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}
"""Of the files' names."""


def _library() -> str | None:
    return library_version("onnxruntime", "onnxruntime")


def _applies(folder: Path, *, suffix: str) -> bool:
    return any(_file(folder, name, suffix).is_file() for name in ("vision_model", "text_model"))


def _outputs(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str], *, suffix: str) -> Outputs:
    """Embeddings by the graphs of the towers, logits of the first pictures and texts by that of the whole model."""
    pixels_B3SS = image_BD = tokens = text_ND = logits_BN = None
    inputs: dict[str, np.ndarray] = {}
    settings: dict[str, str] = {}
    if _file(folder, "vision_model", suffix).is_file():
        session = _session(folder, "vision_model", suffix)
        inputs["pixel_values"] = pixel_values(folder, pictures)
        pixels_B3SS = torch.from_numpy(inputs["pixel_values"])
        image_BD = normalize(_run(session, "image_embeds", inputs), dim=-1)
    if _file(folder, "text_model", suffix).is_file():
        session = _session(folder, "text_model", suffix)
        settings = session.get_modelmeta().custom_metadata_map
        length = int(settings["text_length"]) if "text_length" in settings else None
        ids_NL, mask_NL = token_rows(folder, texts, length=length)
        written = {"input_ids": ids_NL} | ({"attention_mask": mask_NL} if length is None else {})
        tokens = unpadded(ids_NL, mask_NL) if length is None else [as_padded(row, folder) for row in ids_NL.tolist()]
        text_ND = normalize(_run(session, "text_embeds", written), dim=-1)
        inputs |= written
    if image_BD is not None and text_ND is not None:
        logits_BN = float(settings["logit_scale"]) * image_BD @ text_ND.T + float(settings.get("logit_bias", 0))
        first = {name: rows[:BATCH] for name, rows in inputs.items()}
        logits_BN[:BATCH, :BATCH] = _run(_session(folder, "model", suffix), "logits_per_image", first)
    require_finite(image_BD, text_ND, logits_BN)
    return Outputs(pixels_B3SS=pixels_B3SS, tokens=tokens, image_BD=image_BD, text_ND=text_ND, logits_BN=logits_BN)


def _session(folder: Path, name: str, suffix: str) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(_file(folder, name, suffix), providers=["CPUExecutionProvider"])


def _run(session: Any, output: str, inputs: dict[str, np.ndarray]) -> Tensor:
    """One output for all rows of the inputs that the graph has, in batches."""
    taken = {value.name: inputs[value.name] for value in session.get_inputs()}
    num_rows = max(len(rows) for rows in taken.values())
    parts = []
    for start in range(0, num_rows, BATCH):
        feed = {name: rows[start : start + BATCH] for name, rows in taken.items()}
        parts.append(torch.from_numpy(session.run([output], feed)[0]))
    return torch.cat(parts)


def _file(folder: Path, name: str, suffix: str) -> Path:
    return folder / FOLDER / f"{name}{suffix}.onnx"


def _consumer(dtype: str, limit: float | None, *notes: str) -> Consumer:
    suffix = SUFFIXES[dtype]
    return Consumer(
        name="onnxruntime" if dtype == "fp32" else f"onnxruntime {dtype}",
        library=_library,
        applies=partial(_applies, suffix=suffix),
        outputs=partial(_outputs, suffix=suffix),
        limit=limit,
        notes=notes,
    )


_LENGTH = "the graphs of one tower give embeddings that are not of unit length; the whole model's have it"
CONSUMERS = (
    _consumer("fp32", LIMIT, _LENGTH),
    _consumer("fp16", None, _LENGTH, "computed in half precision, from float32 inputs to float32 outputs"),
    _consumer("int8", None, _LENGTH, "weights of 8 bits: differences are told and end no export"),
)
