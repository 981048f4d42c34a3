"""Rows of the GPU plan: who writes them, and the closing table that lays them beside what was predicted."""

import csv
import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, object]

NOT_RUN = ("floor", "before")
"""Modes of the budget that no code takes."""
QUANTITIES = ("ms", "pairs_per_s", "mfu", "host_ms", "mb", "times_open_clip", "ratio")
"""Columns that a prediction and a row share, beside what they are of: `what`, `mode` and `batch`."""
GOALS = {
    ("b32", 2048): {"mfu": 0.25, "times_open_clip": 1.5},
    ("b16", 1024): {"mfu": 0.30, "times_open_clip": 1.25},
    ("l14", 512): {"mfu": 0.35},
    ("l14", 256): {"mfu": 0.35, "times_open_clip": 1.15},
    ("info_nce 512", 32_768): {"times_open_clip": 2.0},
    ("info_nce 768", 32_768): {"times_open_clip": 2.0},
}
"""What is wanted at first, by model or loss and batch; MFU 0.45 in the end."""


class Report:
    """Writes rows to FOLDER/gpu_plan.jsonl at once, and collects what was found wrong in the step that runs.

    Args:
        folder: exists.
        rehearse: whether values mean nothing: then nothing is found wrong.
    """

    def __init__(self, folder: Path, *, rehearse: bool) -> None:
        self.folder, self.rehearse = folder, rehearse
        self.step = ""
        self.failures: list[str] = []
        self.imported_s = 0.0
        """Seconds that this process needed to import everything."""

    def say(self, **figures: object) -> None:
        """Writes one row with the step's name, shows it, and flushes both."""
        row = {"at": round(time.time(), 1), "step": self.step} | {k: _short(value) for k, value in figures.items()}
        with (self.folder / "gpu_plan.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{key}={value}" for key, value in row.items() if key != "at"), flush=True)

    def check(self, good: bool, what: str) -> bool:
        """Notes what is wrong unless it is good, and goes on; returns `good`."""
        if not good and not self.rehearse:
            self.failures.append(what)
        return good

    def size(self, real: int, rehearsed: int) -> int:
        """The size to run at."""
        return rehearsed if self.rehearse else real


def read_rows(folder: Path) -> list[dict[str, object]]:
    """All rows that were written; a line that was cut off is left out."""
    rows: list[dict[str, object]] = []
    path = folder / "gpu_plan.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def closing_table(rows: Iterable[Row], outcomes: Mapping[str, str], *, predictions: Path) -> str:
    """How the steps ended, what was measured and not predicted, and last: predicted, came, ratio and goal."""
    predicted = read_predictions(predictions, gpu="H200")
    came = {_key(row): row for row in rows if "what" in row}
    lines = [["figure", "predicted", "came", "ratio", "goal"]]
    for key, row in predicted.items():
        for quantity in QUANTITIES if key in came else ():
            if row.get(quantity):
                lines.append(_line(key, quantity, float(row[quantity]), came[key].get(quantity)))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    paragraphs = [
        [f"{name}: {outcome}" for name, outcome in outcomes.items()],
        [_in_words(row) for key, row in came.items() if key not in predicted],
        ["did not come: " + ", ".join(" ".join(map(str, key)) for key in predicted if key not in came)],
        ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines],
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs) + "\n"


def read_predictions(path: Path, *, gpu: str) -> dict[tuple[str, str, int], dict[str, str]]:
    """What `budget.py` wrote for one such GPU, by what it is of, mode and batch; the newest row of each."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["gpu"] == gpu and row["gpus"] == "1"]
    return {_key(row): row for row in rows if row["mode"] not in NOT_RUN}


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return str(row["what"]), str(row.get("mode", "")), int(row.get("batch", 0))


def _line(key: tuple[str, str, int], quantity: str, wanted: float, found: object) -> list[str]:
    what, mode, batch = key
    goal, is_number = GOALS.get((what, batch), {}).get(quantity), isinstance(found, int | float)
    return [
        f"{what} {mode} {batch} {quantity}",
        f"{wanted:.4g}",
        f"{found:.4g}" if is_number else "-" if found is None else str(found),
        f"{found / wanted:.2f}" if is_number else "-",
        "" if goal is None else f"{goal:g}",
    ]


def _in_words(row: Row) -> str:
    hidden = ("at", "step", "what", "mode", "batch")
    named = " ".join(str(row[name]) for name in ("what", "mode", "batch") if row.get(name) not in (None, ""))
    figures = ", ".join(f"{name} {value}" for name, value in row.items() if name not in hidden)
    return (f"{named}: {figures}" if figures else named)[:200]  # all of it stands in gpu_plan.jsonl


def _short(value: object) -> object:
    """Four significant digits; NaN and infinity as words, which JSON has no numbers for."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)
