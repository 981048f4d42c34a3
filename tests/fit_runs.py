"""Fit runs so small that a whole one takes seconds: shards of a table, with cells and pictures missing, and a config.

Sample i has a picture but if i % 5 == 1, a title but if i % 5 == 2, and targets that follow from both.
"""

import json
from pathlib import Path
from typing import Any

from shard_files import write_shards
from tiny_clip import encoded, picture

from clipx.config.fit import FitConfig
from clipx.config.load import load_config

CONFIG = Path(__file__).with_name("tiny_fit.yaml")
NUM_TRAIN = 96
NUM_VAL = 36
COLOURS = ("black", "blue", "green", "red")


def write_table_shards(folder: Path) -> Path:
    """train/ and val/ of `folder`; returns it."""
    write_shards(folder / "train", [60, NUM_TRAIN - 60], replaced={i: sample(i) for i in range(NUM_TRAIN)})
    write_shards(folder / "val", [NUM_VAL], replaced={i: sample(i + NUM_TRAIN) for i in range(NUM_VAL)})
    return folder


def sample(number: int) -> dict[str, bytes]:
    """The members of a sample."""
    record = {name: value for name, value in row(number).items() if value is not None}
    members = {"json": json.dumps(record).encode()}
    if number % 5 != 1:
        members["png"] = encoded(picture(number))
    return members


def row(number: int) -> dict[str, Any]:
    """Its record: every seventh lacks the number, every fourth the price."""
    colour = COLOURS[number % 4]
    return {
        "title": None if number % 5 == 2 else f"a {colour} thing",
        "weight": None if number % 7 == 0 else float(number % 11),
        "shop": "north" if number % 3 else "south",
        "colour": colour,
        "price": None if number % 4 == 3 else 1.0 + number % 9,
        "tags": [colour, "even"] if number % 2 == 0 else [colour],
    }


def tiny_fit(run_dir: Path, shards: Path, *overrides: str) -> FitConfig:
    """The run of tiny_fit.yaml in `run_dir` on `shards`, with nothing left to be found."""
    places = [f"run_dir={run_dir}", f"data.train=[{shards / 'train'}]", f"data.val=[{shards / 'val'}]"]
    found = [f"data.train_shards=[{shards / 'train'}]", f"data.val_shards=[{shards / 'val'}]"]
    config = load_config([CONFIG], [*places, *found, f"data.num_train={NUM_TRAIN}", *overrides])
    assert isinstance(config, FitConfig)
    assert config.is_resolved
    return config
