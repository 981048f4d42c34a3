"""The file fitted.json of an export: all that those who run the program of a fitted model need beside it.

It names inputs and outputs, and says how the cells of a row become numbers and what the numbers of a result mean.
docs/fit.md describes it for people.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_never

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import ClassTarget, LabelsTarget, NumberTarget
from clipx.export.plain import padded_length

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
    if config.image_column is None:
        return {}
    size = config.model.image.image_size
    told = {
        "column": config.image_column,
        "dtype": "uint8",
        "shape": ["batch", size, size, 3],
        "meaning": "RGB, resized and cropped as preprocessor_config.json says, and not normalised",
        "absent": "any pixels",
    }
    return {PICTURES: told}


def _text(config: FitConfig) -> dict[str, Any]:
    if not config.text_columns:
        return {}
    length = padded_length(config.model.text)
    common = {"dtype": "int64", "shape": ["batch", "sequence" if length is None else length], "absent": "any numbers"}
    ids = {
        "columns": list(config.text_columns),
        "joined_by": JOINED_BY,
        "longest": config.model.text.context_length,
        "meaning": "token ids, by the tokenizer beside, of the cells that are not blank, joined",
    }
    mask = {"meaning": "1 for the tokens of a text, 0 after them"}
    return {IDS: ids | common} | ({MASK: mask | common} if length is None else {})


def _table(config: FitConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if numbers := config.numbers:
        found[NUMBERS] = {
            "columns": [given.column or name for name, given in numbers.items()],
            "dtype": "float64",
            "shape": ["batch", len(numbers)],
            "meaning": "the cells as they stand: the program scales them",
            "absent": "NaN",
        }
    if categories := config.categories:
        found[CATEGORIES] = {
            "columns": [given.column or name for name, given in categories.items()],
            "dtype": "int64",
            "shape": ["batch", len(categories)],
            "meaning": "the place of the cell among the classes of its column, from 0",
            "classes": [list(given.classes or ()) for given in categories.values()],
            "absent": "-1, also for a cell that is none of the classes",
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
