"""What transformers computes from an export: with its whole models, one tower alone, and its pipeline.

Everything is computed in float32, whatever the weights are stored in.
Shapes: B images, N texts, S image size, D embedding, L tokens, P tokens of an image, C channels of a tower.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from clipx.export.huggingface_config import PAD
from clipx.export.parity.consumer import BATCH, Consumer, Outputs, batches, library_version
from clipx.export.parity.ours import NUM_HIDDEN
from clipx.pretrained.huggingface_config import LOGIT_BIAS

Family = Literal["CLIP", "Siglip"]
Outcome = Callable[[Path, Sequence[Image.Image], Sequence[str]], Outputs]

_IN_PIPELINE = 16  # pictures, and texts, which it encodes anew for every picture
_PIL = "load its processor with backend='pil': the default backend resizes with other roundings"
_CROP = "it rounds the corner of the centre square down, which is one pixel aside where 4n + 3 pixels are left over"
_TRUNCATE = "ask its tokenizer for padding=True and truncation=True: it cuts at the model's context and pads by its end"
_PAD = "ask its tokenizer for padding='max_length' and truncation=True: the model attends to its padding"
_NO_TRUNCATION = "the pipeline does not cut texts: one that is longer than the model's context is an error there"


def library() -> str | None:
    """Name and version of transformers; None if it is not installed."""
    return library_version("transformers", "transformers")


def model_type(folder: Path) -> str | None:
    """What config.json says that the folder's model is; None without one."""
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None


@contextmanager
def quiet() -> Iterator[None]:
    """Without a bar for the loading of weights, and without a list of those that one tower alone does not use."""
    from transformers.utils import logging

    verbosity, was_enabled = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_enabled:
            logging.enable_progress_bar()


def _model(name: str, folder: Path) -> Any:
    import transformers

    with quiet():
        loaded = getattr(transformers, name).from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return loaded.eval()


def _pixels(folder: Path, pictures: Sequence[Image.Image], *, backend: str | None = "pil") -> Tensor:
    """The preprocessed pictures (B, 3, S, S); by the default backend with None."""
    from transformers import AutoImageProcessor

    chosen = {} if backend is None else {"backend": backend}
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, **chosen)
    return torch.cat([processor(some, return_tensors="pt")["pixel_values"] for some in batches(pictures)])


def _written(folder: Path, texts: Sequence[str], family: Family) -> list[dict[str, Tensor]]:
    """The tokenizer's arrays (N, L), a batch at a time."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    padding: Any = True if family == "CLIP" else "max_length"
    length = None if family == "CLIP" else _positions(folder)
    arguments = {"return_tensors": "pt", "padding": padding, "truncation": True, "max_length": length}
    return [dict(tokenizer(some, **arguments)) for some in batches(texts)]


def _positions(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("text_config", config).get("max_position_embeddings", 64))


def _ids(folder: Path, written: Sequence[dict[str, Tensor]], family: Family) -> list[list[int]]:
    """The ids of each text up to its first end token, where CLIP pools; SigLIP's with the padding, which it sees."""
    rows = [row for some in written for row in some["input_ids"].tolist()]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if family == "CLIP":
        end = config.get("text_config", config)["eos_token_id"]
        return [until_end(row, end) for row in rows]
    return [as_padded(row, folder) for row in rows]


def until_end(row: list[int], end: int) -> list[int]:
    """The ids up to the first end token."""
    return row[: row.index(end) + 1]


def as_padded(row: list[int], folder: Path) -> list[int]:
    """The ids with the model's own padding, which is 0 with CLIP's tokenizer, and a token of its own in the folder."""
    written = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("pad_token")
    return [0 if number == PAD[1] else number for number in row] if written == PAD[0] else row


@torch.no_grad()
def _whole(
    folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str], *, family: Family, backend: str | None
) -> Outputs:
    model = _model(f"{family}Model", folder)
    pixels_B3SS, written = _pixels(folder, pictures, backend=backend), _written(folder, texts, family)
    image = [model.get_image_features(pixel_values=some).pooler_output for some in pixels_B3SS.split(BATCH)]
    text = [model.get_text_features(**some).pooler_output for some in written]
    image_BD, text_ND = normalize(torch.cat(image), dim=-1), normalize(torch.cat(text), dim=-1)
    # a CLIP trained with the sigmoid loss has its bias in the config, since the class has no place for it
    bias = getattr(model.config, LOGIT_BIAS, None) if family == "CLIP" else model.logit_bias
    logits_BN = model.logit_scale.exp() * image_BD @ text_ND.T
    return Outputs(
        pixels_B3SS=pixels_B3SS,
        tokens=_ids(folder, written, family),
        image_BD=image_BD,
        text_ND=text_ND,
        logits_BN=logits_BN if bias is None else logits_BN + bias,
    )


@torch.no_grad()
def _vision(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str], *, family: Family) -> Outputs:
    del texts
    model = _model("CLIPVisionModelWithProjection" if family == "CLIP" else "SiglipVisionModel", folder)
    pixels_B3SS = _pixels(folder, pictures)
    found = [model(pixel_values=some) for some in pixels_B3SS.split(BATCH)]
    image = [some.image_embeds if family == "CLIP" else some.pooler_output for some in found]
    return Outputs(pixels_B3SS=pixels_B3SS, image_BD=normalize(torch.cat(image), dim=-1))


@torch.no_grad()
def _text(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str], *, family: Family) -> Outputs:
    del pictures
    model = _model("CLIPTextModelWithProjection" if family == "CLIP" else "SiglipTextModel", folder)
    written = _written(folder, texts, family)
    found = [model(**some) for some in written]
    text = [some.text_embeds if family == "CLIP" else some.pooler_output for some in found]
    return Outputs(tokens=_ids(folder, written, family), text_ND=normalize(torch.cat(text), dim=-1))


@torch.no_grad()
def _hidden(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str], *, family: Family) -> Outputs:
    del texts
    first = list(range(min(NUM_HIDDEN, len(pictures))))
    model = _model(f"{family}VisionModel", folder)
    pixels_B3SS = _pixels(folder, [pictures[i] for i in first])
    found = [model(pixel_values=some, output_hidden_states=True) for some in pixels_B3SS.split(BATCH)]
    return Outputs(hidden_BPC=torch.cat([some.hidden_states[-2] for some in found]), pictures=first)


def _pipeline(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str], *, family: Family) -> Outputs:
    from transformers import AutoImageProcessor, pipeline

    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    with quiet():
        classify = pipeline(
            "zero-shot-image-classification",
            model=str(folder),
            image_processor=processor,
            device="cpu",
            dtype=torch.float32,
        )
        rows = [row for some in batches(texts) for row in classify.tokenizer(some)["input_ids"]]
    longest = _positions(folder) if family == "CLIP" else None
    fitting = {text: i for i, text in enumerate(texts) if longest is None or len(rows[i]) <= longest}
    chosen = list(fitting.values())[:_IN_PIPELINE]
    labels, first = [texts[i] for i in chosen], list(range(min(_IN_PIPELINE, len(pictures))))
    found = classify([pictures[i] for i in first], candidate_labels=labels, hypothesis_template="{}")
    by_label = [{entry["label"]: entry["score"] for entry in entries} for entries in found]
    scores_BN = torch.tensor([[scores[label] for label in labels] for scores in by_label])
    tokens = [rows[i] for i in chosen] if family == "CLIP" else None
    return Outputs(tokens=tokens, scores_BN=scores_BN, pictures=first, texts=chosen, are_sigmoids=family == "Siglip")


def _is_one_of(folder: Path, *, types: tuple[str, ...]) -> bool:
    return model_type(folder) in types


def _consumers(family: Family) -> tuple[Consumer, ...]:
    name, text_note = family.lower(), _TRUNCATE if family == "CLIP" else _PAD
    vision, text = f"{name}_vision_model", f"{name}_text_model"
    projected = "WithProjection" if family == "CLIP" else ""

    def row(title: str, outputs: Outcome, *types: str, notes: tuple[str, ...], limit: bool = True) -> Consumer:
        applies = partial(_is_one_of, types=(name, *types))
        bound = {} if limit else {"limit": None}
        return Consumer(
            name=f"transformers {title}",
            library=library,
            applies=applies,
            outputs=outputs,
            crop="floor",
            notes=notes,
            **bound,
        )

    whole = partial(_whole, family=family)
    seen = (_PIL, _CROP) if family == "CLIP" else (_PIL,)
    return (
        row(f"{family}Model", partial(whole, backend="pil"), notes=(*seen, text_note)),
        row(f"{family}Model, default image backend", partial(whole, backend=None), notes=(_PIL,), limit=False),
        row(f"{family}VisionModel{projected}", partial(_vision, family=family), vision, notes=seen),
        row(f"{family}TextModel{projected}", partial(_text, family=family), text, notes=(text_note,)),
        row(f"{family}VisionModel, last but one hidden state", partial(_hidden, family=family), vision, notes=seen),
        row(
            'pipeline("zero-shot-image-classification")',
            partial(_pipeline, family=family),
            notes=(*seen, _NO_TRUNCATION) if family == "CLIP" else seen,
        ),
    )


CONSUMERS = (*_consumers("CLIP"), *_consumers("Siglip"))
