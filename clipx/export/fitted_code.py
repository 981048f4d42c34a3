"""The lines of code on the card of a fitted model: how its program is run, as it is done in the export's folder."""

from collections.abc import Set as AbstractSet

from clipx.config.fit import FitConfig
from clipx.export.fitted_settings import CATEGORIES, IDS, MASK, NUMBERS, PICTURES, PRESENCE
from clipx.export.plain import padded_length

_SQUARE = """\
def square(picture):
    width, height = ({size} * side // min(picture.size) for side in picture.size)
    picture = picture.convert("RGB").resize((width, height), Image.Resampling.{filter})
    left, top = round((width - {size}) / 2), round((height - {size}) / 2)
    return np.array(picture.crop((left, top, left + {size}, top + {size})))


"""
_SQUASH = """\
def square(picture):
    return np.array(picture.convert("RGB").resize(({size}, {size}), Image.Resampling.{filter}))


"""
_TOKENS = """\
tokenizer = AutoTokenizer.from_pretrained(".")
tokens = tokenizer(["a red cup"], padding="max_length", truncation=True, max_length={length}, return_tensors="np")
"""
_ONNX = """\
session = onnxruntime.InferenceSession("fitted.onnx")
names = [output.name for output in session.get_outputs()]
print(dict(zip(names, session.run(names, inputs))))
"""
_PT2 = """\
predict = torch.export.load("fitted.pt2").module()
with torch.no_grad():
    print(predict(**{name: torch.from_numpy(rows) for name, rows in inputs.items()}))
"""
_CLIPX = """\
import clipx

model = clipx.load(".")
print(model.predict([{row}]))
"""


def fitted_code(files: AbstractSet[str], config: FitConfig) -> dict[str, str]:
    """A few lines of Python for each library that runs the export, by the library's name.

    Args:
        files: names of the export's files.
        config: resolved.
    """
    blocks = {"clipx": _CLIPX.format(row=_row(config))}
    for library, module, file, run in (
        ("ONNX Runtime", "onnxruntime", "fitted.onnx", _ONNX),
        ("torch.export", "torch", "fitted.pt2", _PT2),
    ):
        if file in files:
            blocks[library] = _imports(config, module) + _inputs(config) + run
    return blocks


def _row(config: FitConfig) -> str:
    """A row of the table, as Python writes it."""
    cells: dict[str, object] = {}
    if config.image_column is not None:
        cells[config.image_column] = "photo.jpg"
    cells |= {name: "" if place else "a red cup" for place, name in enumerate(config.text_columns)}
    cells |= {part.column or name: round(part.mean or 0.0, 2) for name, part in config.numbers.items()}
    cells |= {part.column or name: (part.classes or ("",))[0] for name, part in config.categories.items()}
    return repr(cells)


def _imports(config: FitConfig, module: str) -> str:
    plain, named = ["import numpy as np", f"import {module}"], []
    if "image" in config.modalities:
        named.append("from PIL import Image")
    if "text" in config.modalities:
        named.append("from transformers import AutoTokenizer")
    return "\n".join([*plain, *named]) + "\n\n" + ("\n" if "image" in config.modalities else "")


def _inputs(config: FitConfig) -> str:
    """The lines that make `inputs` of one row."""
    before, lines = "", []
    image, text = config.model.image, config.model.text
    if "image" in config.modalities:
        code = _SQUASH if image.resize == "squash" else _SQUARE
        before += code.format(size=image.image_size, filter=image.interpolation.upper())
        lines.append(f'"{PICTURES}": square(Image.open("photo.jpg"))[None],')
    if "text" in config.modalities:
        length = padded_length(text)
        before += _TOKENS.format(length=text.context_length if length is None else length)
        lines += [f'"{name}": tokens["{name}"],' for name in ((IDS, MASK) if length is None else (IDS,))]
    if config.numbers:
        cells = ", ".join(f"{part.mean or 0.0:.4g}" for part in config.numbers.values())
        lines.append(f'"{NUMBERS}": np.array([[{cells}]], dtype=np.float64),')
    if config.categories:
        lines.append(f'"{CATEGORIES}": np.array([{[0] * len(config.categories)}]),')
    lines.append(f'"{PRESENCE}": np.array([{[1] * len(config.modalities)}], dtype=np.float32),')
    listed = "".join(f"    {line}\n" for line in lines)
    return f"{before}inputs = {{\n{listed}}}\n"
