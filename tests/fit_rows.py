"""A small table for fitted models of `row_models`, with all that a table may have."""

import csv
from pathlib import Path

from tiny_clip import encoded, picture

NUM_ROWS = 30
NO_PHOTO, NO_TITLE, NOTHING, BROKEN, HEAVY, LOST = 1, 2, 7, 11, 13, 17
COLUMNS = ("sku", "photo", "title", "brand", "weight", "shop")


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
