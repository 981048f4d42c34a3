"""What sentence-transformers computes from an export, whose folder for transformers it loads as it stands.

Shapes: B images, N texts, L tokens, D embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clipx.export.parity.consumer import Consumer, Outputs, batches, library_version
from clipx.export.parity.transformers import as_padded, model_type, quiet, until_end


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
    if model_type(folder) == "siglip":
        model[0].processing_kwargs = {"text": {"padding": "max_length"}}
    arguments: Any = {"normalize_embeddings": True, "convert_to_tensor": True, "show_progress_bar": False}
    return Outputs(
        tokens=[row for some in batches(texts) for row in _ids(model, folder, some)],
        image_BD=torch.cat([model.encode(some, **arguments) for some in batches(pictures)]),
        text_ND=torch.cat([model.encode(some, **arguments) for some in batches(texts)]),
    )


def _ids(model: Any, folder: Path, texts: list[str]) -> list[list[int]]:
    rows = model.preprocess(texts)["input_ids"].tolist()
    if model_type(folder) == "siglip":
        return [as_padded(row, folder) for row in rows]
    return [until_end(row, model[0].config.text_config.eos_token_id) for row in rows]


def _clip(folder: Path) -> bool:
    return model_type(folder) == "clip"


def _siglip(folder: Path) -> bool:
    return model_type(folder) == "siglip"


_PIL = "load it with processor_kwargs={'backend': 'pil'}: the default backend resizes with other roundings"
_PAD = "set model[0].processing_kwargs = {'text': {'padding': 'max_length'}}: the model attends to its padding"
_NAME = "sentence-transformers"
CONSUMERS = (
    Consumer(name=_NAME, library=_library, applies=_clip, outputs=_outputs, crop="floor", notes=(_PIL,)),
    Consumer(name=_NAME, library=_library, applies=_siglip, outputs=_outputs, crop="floor", notes=(_PIL, _PAD)),
)
