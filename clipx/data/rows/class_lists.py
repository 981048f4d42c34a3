"""The lists of classes that sources bring: a file beside them, or the types of Hugging Face's columns."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipx.data.class_names import read_entries

CLASS_NAMES = "classnames.txt"
"""One class per line, whose number, from 0, is the label."""
DATASET_TYPE = "dataset_type.txt"
"""What a set of shards is for: `classification`, which it need not say, `retrieval` or `multilabel`."""


def names_beside(folder: Path) -> tuple[str, ...]:
    """The classes that a folder's classnames.txt lists; empty without such a file.

    Raises:
        InputError: the file cannot be read, or lists nothing.
    """
    path = folder / CLASS_NAMES
    return read_entries(path, needed_by="a set with classes") if path.is_file() else ()


def class_labels(metadata: Mapping[bytes, bytes] | None, *, folder: Path) -> dict[str, Sequence[str]]:
    """The columns that are of labels by HF datasets' types, and the classes of each.

    Args:
        metadata: of the schema of a parquet or arrow file; without types in it, those of the dataset_info.json in
            `folder` count.
    """
    features: Any = None
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    if not isinstance(features, dict):
        with suppress(ValueError, LookupError, TypeError, OSError):
            features = json.loads((folder / "dataset_info.json").read_bytes())["features"]
    if not isinstance(features, dict):
        return {}
    return {name: names for name, feature in features.items() if (names := _names(feature))}


def _names(feature: object) -> list[str]:
    """The classes of a type: a label, or a list of labels; empty for any other."""
    if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    if not (isinstance(feature, dict) and feature.get("_type") == "ClassLabel"):
        return []
    names = feature.get("names")
    if isinstance(names, dict):  # older ones: {"0": "cat", ...}
        names = [names.get(str(number)) for number in range(len(names))]
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
