"""A small table with all that a table may have, and models that predict its rows, with random weights."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitted_models import fitted, resolved_config
from tiny_clip import encoded, picture

from clipx.config.fit import FitConfig
from clipx.pretrained import Fitted

NUM_ROWS = 30
NO_PHOTO, NO_TITLE, NOTHING, BROKEN, HEAVY, LOST = 1, 2, 7, 11, 13, 17
COLUMNS = ("sku", "photo", "title", "brand", "weight", "shop")
INPUTS: dict[str, Any] = {
    "photo": {"type": "image"},
    "title": {"type": "text", "columns": ["title", "brand"]},
    "weight": {"type": "number", "mean": 5.0, "std": 2.0},
    "shop": {"type": "category", "classes": ["north", "south"]},
}
TARGETS: dict[str, Any] = {
    "shape": {"type": "class", "classes": ["disc", "ring", "star"], "counts": [3, 4, 5]},
    "price": {"type": "number", "transform": "log", "mean": 2.0, "std": 0.5},
    "tags": {"type": "labels", "separator": "|", "classes": ["new", "sale"], "counts": [6, 7]},
}


def row_config(
    *, inputs: Mapping[str, Any] = INPUTS, targets: Mapping[str, Any] = TARGETS, **further: Any
) -> FitConfig:
    """Of a run on the table, of which nothing is left to be found."""
    return resolved_config(inputs, targets, **further)


def row_model(config: FitConfig | None = None) -> Fitted:
    """What such a run trains, without training."""
    return fitted(config or row_config())


def write_table(folder: Path, *, name: str = "table.csv") -> Path:
    """A CSV of `NUM_ROWS` rows and its pictures; some rows lack something, or hold what cannot be read."""
    rows: list[dict[str, str]] = []
    for row in range(NUM_ROWS):
        (folder / f"{row}.png").write_bytes(encoded(picture(row)))
        rows.append(
            {
                "sku": f"sku-{row}",
                "photo": f"{row}.png",
                "title": f"thing {row}, red",
                "brand": "" if row % 3 else "acme",
                "weight": "" if row % 4 == 0 else f"{row / 2}",
                "shop": "north" if row % 2 else "south",
            }
        )
    rows[NO_PHOTO]["photo"] = ""
    rows[NO_TITLE] |= {"title": "", "brand": ""}
    rows[NOTHING] = dict.fromkeys(COLUMNS, "") | {"sku": "sku-7"}
    (folder / f"{BROKEN}.png").write_bytes(b"no picture")
    rows[HEAVY]["weight"] = "heavy"
    (folder / f"{LOST}.png").unlink()
    path = folder / name
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path
