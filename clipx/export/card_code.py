"""The lines of code on a model card: how each library loads an export, as it is run in the export's folder."""

from collections.abc import Set as AbstractSet

_TRANSFORMERS = """\
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model=".")
print(classify("photo.jpg", candidate_labels=["a cat", "a dog"]))
"""
_SENTENCE_TRANSFORMERS = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")
print(model.similarity(model.encode([Image.open("photo.jpg")]), model.encode(["a cat", "a dog"])))
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
_ONNX = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("onnx/vision_model.onnx")
pixels = np.zeros((1, 3, {size}, {size}), dtype=np.float32)  # a picture, resized and normalised
print(session.run(None, {{session.get_inputs()[0].name: pixels}})[0].shape)
"""
_CLIPX = """\
import clipx
from PIL import Image

model = clipx.load(".")
print(model.encode_image(Image.open("photo.jpg")) @ model.encode_text(["a cat", "a dog"]).T)
"""


def code_blocks(files: AbstractSet[str], *, image_size: int) -> dict[str, str]:
    """A few lines of Python for each library that loads the export, by the library's name.

    Args:
        files: paths of the export's files from its folder.
        image_size: pixels of the model's square input.
    """
    blocks: dict[str, str] = {}
    if {"config.json", "tokenizer_config.json", "preprocessor_config.json"} <= files:
        blocks |= {"transformers": _TRANSFORMERS, "sentence-transformers": _SENTENCE_TRANSFORMERS}
    if "open_clip_config.json" in files:
        blocks["open_clip"] = _OPEN_CLIP
    if "onnx/vision_model.onnx" in files:
        blocks["ONNX Runtime"] = _ONNX.format(size=image_size)
    if {"model.safetensors", "open_clip_model.safetensors"} & files:
        blocks["clipx"] = _CLIPX
    return blocks
