"""`gift`, which needs both inputs: every fusion, with a linear head and with the default one, over seeds.

An additive score gets at most three of the four cells of an exclusive or, so no more than 75% of the rows with both
inputs; 50% is chance.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from typing import get_args

import torch
from fitting import product_arguments, product_runs, read_table, scores, views

from clipx.config.fit import Fusion

HEADS = {"linear": "head.hidden=[]", "default": "head.hidden=[256]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    product_arguments(parser)
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--fusions", nargs="+", choices=get_args(Fusion), default=get_args(Fusion), help="default: all")


def measure(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    seen = views(read_table(arguments.table / "test.csv", picture="photo"), picture="photo", text="title")
    with product_runs(arguments) as runs:
        for head, fusion, seed in product(HEADS, arguments.fusions, range(arguments.seeds)):
            done = runs.fit(HEADS[head], f"fusion={fusion}", f"seed={seed}", targets=["gift"])
            found = {view: scores(done.model, rows)["gift"] for view, rows in seen.items()}
            yield {"head": head, "fusion": fusion, "seed": seed, "target": "gift", **found, "seconds": done.seconds}
