"""What went into a model that is an average, for its export: said without where on somebody's machine it lay."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipx.checkpoint.find import ModelFiles
from clipx.export.folder import AVERAGE, PARITY


def read_average(files: ModelFiles) -> dict[str, Any] | None:
    """The `parts` of an average, and the sets it was `chosen_by`, if any; None for a model that is no average.

    Of an average's export they are those that its parity.json has. A file that cannot be read counts as absent.
    """
    if files.kind != "export":
        return None
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        if (files.local / AVERAGE.name).is_file():
            record = json.loads((files.local / AVERAGE.name).read_bytes())
            rows = record.get("alphas") or record["models"]
            return _told(_parts(record), {folder for row in rows for folder in row.get("scores", ())})
        if (files.local / PARITY).is_file():
            told = json.loads((files.local / PARITY).read_bytes())["average"]
            return _told(((part["share"], part) for part in told["parts"]), told.get("chosen_by", ()))
    return None


def _parts(record: Mapping[str, Any]) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """Each model by its share of the whole."""
    alpha = record.get("alpha", 1.0)
    if "start" in record:
        yield 1 - alpha, record["start"]
    for entry in record["models"]:
        yield alpha * entry["share"], entry


def _told(parts: Iterable[tuple[float, Mapping[str, Any]]], sets: Iterable[str]) -> dict[str, Any]:
    """Models and sets by the last part of their paths; what had no share did not go in."""
    told: dict[str, Any] = {
        "parts": [
            {"model": _name(str(entry["model"])), "share": float(share), "sha256": str(entry["sha256"])}
            for share, entry in parts
            if share
        ]
    }
    if names := sorted({Path(folder).name for folder in sets}):
        told["chosen_by"] = names
    return told


def _name(address: str) -> str:
    return address if address.startswith("hf://") else Path(address).name
