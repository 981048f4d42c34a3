"""What each input gives: a model of both inputs, and one of each alone, beside the best possible.

`both` and `as_it_is` are scores of the model of both; so are `photo` and `title`, of rows with that input, the other
one taken away. `only_photo` and `only_title` are those of models that were trained on that input alone, on the same
rows. `best_...` is from the table's best.json: of the test rows where it is a price, else expected.
"""

import argparse
import json
from collections.abc import Iterator

import torch
from fitting import product_arguments, product_runs, read_table, scores, views

INPUTS = ("photo", "title")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    product_arguments(parser)
    parser.add_argument("--seeds", type=int, default=1, help="(default: %(default)s)")


def measure(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    best = json.loads((arguments.table / "best.json").read_text())
    seen = views(read_table(arguments.table / "test.csv", picture="photo"), picture="photo", text="title")
    with product_runs(arguments) as runs:
        for seed in range(arguments.seeds):
            both = runs.fit(f"seed={seed}")
            alone = {name: runs.fit(f"seed={seed}", inputs=[name]) for name in INPUTS}
            found = {view: scores(both.model, rows) for view, rows in seen.items()}
            found |= {f"only_{name}": scores(alone[name].model, seen[name]) for name in INPUTS}
            for target, measures in best["expected"].items():
                reachable = best["price_of_test_rows"]["r2"] if target == "price" else measures["accuracy"]
                yield {
                    "target": target,
                    "seed": seed,
                    "fusion": both.model.fit_config.fusion,
                    "encoder_train": str(both.model.fit_config.encoder.train),
                    **{name: values[target] for name, values in found.items()},
                    **{f"best_{name}": value for name, value in reachable.items()},
                    "seconds": both.seconds,
                }
