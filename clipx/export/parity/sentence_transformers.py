"""What sentence-transformers computes from an export, whose folder for transformers it loads as it stands.

Shapes: B images, N texts, L tokens, D embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clipx.export.parity.consumer import Consumer, Outputs, batches, library_version
from clipx.export.parity.transformers import model_type, quiet


def _library() -> str | None:
    return library_version("sentence-transformers", "sentence_transformers")


def _outputs(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Outputs:
    from sentence_transformers import SentenceTransformer

    with quiet():
        model: Any = SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            model_kwargs={"dtype": torch.float32},
            processor_kwargs={"backend": "pil"},
        )
    if padded := model_type(folder) == "siglip":
        model[0].processing_kwargs = {"text": {"padding": "max_length"}}
    arguments: Any = {"normalize_embeddings": True, "convert_to_tensor": True, "show_progress_bar": False}
    return Outputs(
        tokens=[row for some in batches(texts) for row in _ids(model, some, padded=padded)],
        image_BD=torch.cat([model.encode(some, **arguments) for some in batches(pictures)]),
        text_ND=torch.cat([model.encode(some, **arguments) for some in batches(texts)]),
    )


def _ids(model: Any, texts: list[str], *, padded: bool) -> list[list[int]]:
    written = model.preprocess(texts)
    if padded:  # which counts as text
        return written["input_ids"].tolist()
    lengths = written["attention_mask"].sum(dim=1).tolist()
    return [row[:length].tolist() for row, length in zip(written["input_ids"], lengths, strict=True)]


def _clip(folder: Path) -> bool:
    return model_type(folder) == "clip"


def _siglip(folder: Path) -> bool:
    return model_type(folder) == "siglip"


_PIL = "load it with processor_kwargs={'backend': 'pil'}: the default backend resizes with other roundings"
_PAD = "set model[0].processing_kwargs = {'text': {'padding': 'max_length'}}: the model attends to its padding"
_NAME = "sentence-transformers"
CONSUMERS = (
    Consumer(name=_NAME, library=_library, applies=_clip, outputs=_outputs, crop="floor", notes=(_PIL,)),
    Consumer(name=_NAME, library=_library, applies=_siglip, outputs=_outputs, notes=(_PIL, _PAD)),
)
