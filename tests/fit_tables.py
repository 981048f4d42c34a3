"""Tables, their shards, and configs of runs that fit them; shared by tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shard_files import png, write_tar

from clipx.config.fit import FitConfig
from clipx.config.validate import validate

ENCODER = {
    "embed_dim": 8,
    "image": {"type": "timm", "name": "vit_tiny_patch16_224", "image_size": 32},
    "text": {"type": "transformer", "width": 16, "layers": 1, "heads": 2, "context_length": 16},
}


def fit_config(inputs: Mapping[str, Any], targets: Mapping[str, Any], **further: Any) -> FitConfig:
    """A config of a fit run; an input or target may be written as its type alone."""
    parts = {
        "inputs": {name: {"type": part} if isinstance(part, str) else part for name, part in inputs.items()},
        "targets": {name: {"type": part} if isinstance(part, str) else part for name, part in targets.items()},
    }
    tree = {"job": "fit", "run_dir": "run", "global_batch_size": 4, "data": {"train": "table.csv"}, "encoder": ENCODER}
    return validate(FitConfig, tree | parts | further)


def sample(record: Mapping[str, Any], *, picture: int | None = None) -> dict[str, bytes]:
    """The members of a sample that a row becomes; `picture` is a number that its picture shows."""
    members = {"json": json.dumps(record).encode()}
    return members if picture is None else {"png": png(picture), **members}


def write_samples(folder: Path, shards: Sequence[Sequence[Mapping[str, bytes]]]) -> list[str]:
    """Shards of samples, numbered through as rows are."""
    paths, first = [], 0
    for place, samples in enumerate(shards):
        members = [
            (f"{first + number:09d}.{extension}", content)
            for number, fields in enumerate(samples)
            for extension, content in fields.items()
        ]
        first += len(samples)
        paths.append(str(write_tar(folder / f"{place:05d}.tar", members)))
    return paths
