"""The lines of code on a model card: how each library loads an export, as it is run in the export's folder."""

from collections.abc import Set as AbstractSet

from clipx.config.model import ModelConfig

_PIPELINE = """\
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model=".")
print(classify("photo.jpg", candidate_labels=["a cat", "a dog"]))
"""
_PADDED = """\
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("."), AutoProcessor.from_pretrained(".", backend="pil")
texts = {"text": ["a cat", "a dog"], "padding": "max_length", "truncation": True}
with torch.no_grad():
    found = model(**processor(images=Image.open("photo.jpg"), **texts, return_tensors="pt"))
print(found.logits_per_image.sigmoid())
"""
_PADDING = 'model[0].processing_kwargs = {"text": {"padding": "max_length"}}  # it sees its padding\n'
_VISION_MODEL = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, {name}

model, processor = {name}.from_pretrained("."), AutoImageProcessor.from_pretrained(".", backend="pil")
with torch.no_grad():
    found = model(**processor(Image.open("photo.jpg"), return_tensors="pt"))
print(torch.nn.functional.normalize(found.{output}))
"""
_TEXT_MODEL = """\
import torch
from transformers import AutoTokenizer, {name}

model, tokenizer = {name}.from_pretrained("."), AutoTokenizer.from_pretrained(".")
with torch.no_grad():
    found = model(**tokenizer(["a cat", "a dog"], padding="max_length", truncation=True, return_tensors="pt"))
print(torch.nn.functional.normalize(found.{output}))
"""
_SENTENCE_TRANSFORMERS = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")
{padding}print(model.similarity(model.encode([Image.open("photo.jpg")]), model.encode(["a cat", "a dog"])))
"""
_OPEN_CLIP = """\
import open_clip
import torch
from PIL import Image

model, preprocess = open_clip.create_model_from_pretrained("local-dir:.")
tokenizer = open_clip.get_tokenizer("local-dir:.")
with torch.no_grad():
    image = model.encode_image(preprocess(Image.open("photo.jpg")).unsqueeze(0), normalize=True)
    text = model.encode_text(tokenizer(["a cat", "a dog"]), normalize=True)
print(image @ text.T)
"""
_ONNX_IMAGE = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
pixels = np.zeros((1, 3, {size}, {size}), dtype=np.float32)  # a picture, resized and normalised
print(session.run(None, {{"pixel_values": pixels}})[0].shape)
"""
_ONNX_TEXT = """\
import onnxruntime
from transformers import AutoTokenizer

session = onnxruntime.InferenceSession("{file}")
ids = AutoTokenizer.from_pretrained(".")(["a cat", "a dog"], padding="max_length", truncation=True, return_tensors="np")
print(session.run(None, {{value.name: ids[value.name] for value in session.get_inputs()}})[0].shape)
"""
_PT2_IMAGE = """\
import torch

encode = torch.export.load("{file}").module()
pixels = torch.zeros(1, 3, {size}, {size})  # a picture, resized and normalised
print(encode(pixels).shape)
"""
_PT2_TEXT = """\
import torch
from transformers import AutoTokenizer

encode = torch.export.load("{file}").module()
ids = AutoTokenizer.from_pretrained(".")(["a cat", "a dog"], padding="max_length", truncation=True, return_tensors="pt")
print(encode({inputs}).shape)
"""
_CLIPX = """\
import clipx
from PIL import Image

model = clipx.load(".")
print(model.encode_image(Image.open("photo.jpg")) @ model.encode_text(["a cat", "a dog"]).T)
"""


_GRAPHS = {
    "ONNX Runtime": {"onnx/vision_model": _ONNX_IMAGE, "onnx/text_model": _ONNX_TEXT},
    "torch.export": {"pt2/image_encoder": _PT2_IMAGE, "pt2/text_encoder": _PT2_TEXT},
}
"""The code for the first of a library's files that is there, by the beginning of its name."""
_PIPELINE_PADS = 64  # tokens, of a text of every SigLIP


def code_blocks(files: AbstractSet[str], model: ModelConfig, *, tower_class: str | None = None) -> dict[str, str]:
    """A few lines of Python for each library that loads the export, by the library's name.

    Args:
        files: paths of the export's files from its folder.
        model: the exported one.
        tower_class: in transformers, where the export has one tower alone; None: it has both.
    """
    blocks: dict[str, str] = {}
    pad: int | None = getattr(model.text, "pad", None)
    if "model.safetensors" in files:  # without it config.json is there for those who run graphs
        blocks |= _of_transformers(pad) if tower_class is None else {"transformers": _of_tower(tower_class)}
    if "open_clip_config.json" in files:
        blocks["open_clip"] = _OPEN_CLIP
    for library, graphs in _GRAPHS.items():
        found = [(file, code) for start, code in graphs.items() for file in sorted(files) if file.startswith(start)]
        if found:
            file, code = found[0]
            inputs = 'ids["input_ids"]' + ("" if pad else ', ids["attention_mask"]')
            blocks[library] = code.format(file=file, size=model.image.image_size, inputs=inputs)
    if {"model.safetensors", "open_clip_model.safetensors"} & files and tower_class is None:
        blocks["clipx"] = _CLIPX
    return blocks


def _of_transformers(pad: int | None) -> dict[str, str]:
    """Where texts are padded, which a model then sees, its users must ask for it, but for the pipeline."""
    padding = "" if pad is None else _PADDING
    return {
        "transformers": _PIPELINE if pad in (None, _PIPELINE_PADS) else _PADDED,
        "sentence-transformers": _SENTENCE_TRANSFORMERS.format(padding=padding),
    }


def _of_tower(name: str) -> str:
    """For the class of one tower."""
    is_vision = "Vision" in name
    embeds = "image_embeds" if is_vision else "text_embeds"
    output = embeds if name.endswith("WithProjection") else "pooler_output"
    return (_VISION_MODEL if is_vision else _TEXT_MODEL).format(name=name, output=output)
