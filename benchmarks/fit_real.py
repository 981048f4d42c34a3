"""Real pictures and texts: the group of an emoji, the book of a photograph; both inputs, and each alone.

SET is a folder with train and val shards. emoji: `group` from the picture and the first two keywords; no concept of
val is in train. openstax: `book` from the photograph and its alternative text. `trivial` is the most frequent class of
train.
"""

import argparse
import csv
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from fitting import FitRuns, read_table, scores, work_folder

Words = Callable[[Mapping[str, Any]], str]

TARGETS: dict[str, tuple[str, Words]] = {
    "emoji": ("group", lambda record: ", ".join(record["keywords"][:2])),
    "openstax": ("book", lambda record: str(record["alt"])),
}
CONFIG = """
job: fit
run_dir: runs/real
global_batch_size: 128
precision: fp32
epochs: 30
data: {train: TABLE, val: TABLE}
inputs:
  picture: {type: image}
  words: {type: text}
targets:
  TARGET: {type: class}
encoder: {from: MODEL, train: frozen}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the encoder")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="for the config of all runs")
    parser.add_argument("--set", type=Path, required=True, help="folder with train and val, of shards")
    parser.add_argument("--kind", choices=TARGETS, required=True)
    parser.add_argument("--work", type=Path, help="folder of the runs, to be kept; default: none is kept")
    parser.add_argument("--seeds", type=int, default=1, help="(default: %(default)s)")


def write_table(shards: Path, out: Path, *, target: str, words: Words) -> None:
    """Writes the samples of shards as a CSV of pictures, words and the target, with the pictures beside it."""
    pictures = out / f"{shards.name}_pictures"
    pictures.mkdir()
    with (out / f"{shards.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("picture", "words", target))
        for shard in sorted(shards.glob("*.tar")):
            for key, members in samples(shard):
                record = json.loads(members.pop("json"))
                kind = next(kind for kind in ("jpg", "png") if kind in members)
                path = pictures / f"{key}.{kind}"
                path.write_bytes(members[kind])
                writer.writerow((path.relative_to(out), words(record), record[target]))


def samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a shard: key, and the content of its members by extension."""
    with tarfile.open(shard) as tar:
        files = ((member.name.split(".", 1), tar.extractfile(member).read()) for member in tar)
        for key, members in groupby(files, key=lambda file: file[0][0]):
            yield key, {extension: content for (_, extension), content in members}


def measure(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    target, words = TARGETS[arguments.kind]
    with work_folder(arguments.work) as folder:
        for split in ("train", "val"):
            write_table(arguments.set / split, folder, target=target, words=words)
        config = folder / "fit.yaml"
        config.write_text(CONFIG.replace("TARGET", target))
        tables = [f"data.{split}={folder / split}.csv" for split in ("train", "val")]
        runs = FitRuns(folder / "runs", config, [*tables, f"encoder.from={arguments.model}", *arguments.overrides])
        train, val = (read_table(folder / f"{split}.csv", picture="picture") for split in ("train", "val"))
        likeliest = Counter(row[target] for row in train).most_common(1)[0][0]
        for seed in range(arguments.seeds):
            done = {
                "both": runs.fit(f"seed={seed}"),
                "picture": runs.fit(f"seed={seed}", inputs=["picture"]),
                "words": runs.fit(f"seed={seed}", inputs=["words"]),
            }
            yield {
                "target": target,
                "seed": seed,
                "fusion": done["both"].model.fit_config.fusion,
                "encoder_train": str(done["both"].model.fit_config.encoder.train),
                "trivial": sum(row[target] == likeliest for row in val) / len(val),
                **{name: scores(run.model, val)[target] for name, run in done.items()},
                "seconds": done["both"].seconds,
            }
