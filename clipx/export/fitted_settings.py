"""The file fitted.json of an export: all that those who run the program of a fitted model need beside it.

It names inputs and outputs, and says how the cells of a row become numbers and what the numbers of a result mean.
docs/fit.md describes it for people. It needs no torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_never

from clipx.config.fit import (
    CategoryInput,
    ClassTarget,
    FitConfig,
    ImageInput,
    LabelsTarget,
    NumberInput,
    NumberTarget,
    TextInput,
)
from clipx.export.serving import padded_length

SETTINGS = "fitted.json"
JOINED_BY = ", "
"""Between the columns of a text."""

PICTURES, IDS, MASK, NUMBERS, CATEGORIES, PRESENCE = (
    *("pictures", "input_ids", "attention_mask"),
    *("numbers", "categories", "presence"),
)


def output_name(config: FitConfig, target: str) -> str:
    """The name of a target's output."""
    return f"{target}_value" if config.targets[target].type == "number" else f"{target}_probabilities"


def inputs_of(config: FitConfig, kind: type[Any]) -> dict[str, Any]:
    """The inputs of one kind by their names, in the order of the config."""
    return {name: given for name, given in config.inputs.items() if isinstance(given, kind)}


def fitted_settings(config: FitConfig) -> dict[str, Any]:
    """The content of the file.

    Args:
        config: resolved.
    """
    return {
        "inputs": _image(config) | _text(config) | _table(config) | _presence(config),
        "outputs": {output_name(config, name): _output(config, name) for name in config.targets},
    }


def write_settings(config: FitConfig, folder: Path) -> None:
    """Writes the file."""
    text = json.dumps(fitted_settings(config), indent=2, ensure_ascii=False)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")


def _image(config: FitConfig) -> dict[str, Any]:
    size = config.model.image.image_size
    return {
        PICTURES: {
            "input": name,
            "column": given.column or name,
            "dtype": "uint8",
            "shape": ["batch", size, size, 3],
            "meaning": "RGB, resized and cropped as preprocessor_config.json says, and not normalised",
            "absent": "any pixels",
        }
        for name, given in inputs_of(config, ImageInput).items()
    }


def _text(config: FitConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    length = padded_length(config.model.text)
    for name, given in inputs_of(config, TextInput).items():
        shape = ["batch", "sequence" if length is None else length]
        found[IDS] = {
            "input": name,
            "columns": list(given.columns or (name,)),
            "joined_by": JOINED_BY,
            "dtype": "int64",
            "shape": shape,
            "longest": config.model.text.context_length,
            "meaning": "token ids, by the tokenizer beside, of the cells that are not blank, joined",
            "absent": "any numbers",
        }
        if length is None:
            found[MASK] = {
                "input": name,
                "dtype": "int64",
                "shape": shape,
                "meaning": "1 for the tokens of a text, 0 after them",
                "absent": "any numbers",
            }
    return found


def _table(config: FitConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if numbers := inputs_of(config, NumberInput):
        found[NUMBERS] = {
            "inputs": list(numbers),
            "columns": [given.column or name for name, given in numbers.items()],
            "dtype": "float64",
            "shape": ["batch", len(numbers)],
            "meaning": "the cells as they stand: the program scales them",
            "absent": "NaN",
        }
    if categories := inputs_of(config, CategoryInput):
        found[CATEGORIES] = {
            "inputs": list(categories),
            "columns": [given.column or name for name, given in categories.items()],
            "dtype": "int64",
            "shape": ["batch", len(categories)],
            "meaning": "the place of the cell among `classes`, from 0; -1 for one that is not among them",
            "classes": [list(given.classes or ()) for given in categories.values()],
            "absent": -1,
        }
    return found


def _presence(config: FitConfig) -> dict[str, Any]:
    meaning = "1 where a row has it, else 0; a row must have one at least"
    if "table" in config.modalities:
        meaning += "; the table is there if any number or category is"
    shape = ["batch", len(config.modalities)]
    return {PRESENCE: {"of": list(config.modalities), "dtype": "float32", "shape": shape, "meaning": meaning}}


def _output(config: FitConfig, name: str) -> Mapping[str, Any]:
    target = config.targets[name]
    told: dict[str, Any] = {"target": name, "type": target.type, "column": target.column or name}
    match target:
        case ClassTarget():
            classes = list(target.classes or ())
            return told | {
                "dtype": "float32",
                "shape": ["batch", len(classes)],
                "meaning": "the probability of each class; they sum to 1",
                "classes": classes,
            }
        case NumberTarget():
            meaning = "the number in the unit of the column"
            if target.transform == "log":
                meaning += "; the model was trained on its logarithm, which the program takes back"
            return told | {"dtype": "float64", "shape": ["batch"], "meaning": meaning, "transform": target.transform}
        case LabelsTarget():
            classes = list(target.classes or ())
            return told | {
                "dtype": "float32",
                "shape": ["batch", len(classes)],
                "meaning": "the probability of each label; a row has those of at least 0.5",
                "labels": classes,
                "separator": target.separator,
            }
        case _:
            assert_never(target)
