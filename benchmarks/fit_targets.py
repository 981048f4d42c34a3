"""Three targets together beside each alone: scores of the rows as they are, and the time of training.

Runs take turns; their shards and features were made before. `ratio` is the time of all three over that of one, round
by round.
"""

import argparse
from collections.abc import Iterator

import torch
from fitting import Fit, product_arguments, product_runs, read_table, scores
from harness import Timing, ratio

TARGETS = ("category", "price", "gift")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    product_arguments(parser)
    parser.set_defaults(repetitions=3)


def measure(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    rows = read_table(arguments.table / "test.csv", picture="photo")
    contenders = {"together": TARGETS, **{name: (name,) for name in TARGETS}}
    rounds: list[dict[str, Fit]] = []
    with product_runs(arguments) as runs:
        runs.fit("epochs=1")  # makes what all of them use
        for seed in range(arguments.repetitions):
            rounds.append({name: runs.fit(f"seed={seed}", targets=targets) for name, targets in contenders.items()})
        found = [{name: scores(done.model, rows) for name, done in one.items()} for one in rounds]
    times = {name: Timing.of([one[name].seconds for one in rounds]) for name in contenders}
    for target in TARGETS:
        slower = ratio(times["together"], times[target])
        for seed, one in enumerate(found):
            yield {
                "target": target,
                "seed": seed,
                "together": one["together"][target],
                "alone": one[target][target],
                "together_s": rounds[seed]["together"].seconds,
                "alone_s": rounds[seed][target].seconds,
                "ratio_p20": slower.p20,
                "ratio_p50": slower.p50,
                "ratio_p80": slower.p80,
            }
