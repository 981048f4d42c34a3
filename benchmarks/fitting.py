"""Fit runs for benchmarks: train some that share a table, and score them on rows with and without each input."""

import argparse
import csv
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import clipx
from clipx.pretrained import load_fitted
from clipx.pretrained.fitted import Fitted

Row = Mapping[str, str]

PRODUCTS = Path(__file__).parents[1] / "configs" / "fit" / "products.yaml"


@dataclass(frozen=True)
class Fit:
    """A run that is complete."""

    model: Fitted
    seconds: float
    """From the config to the end of training."""


@dataclass
class FitRuns:
    """Runs on one table, one after another; the first makes the shards and the kept features of all.

    Args:
        folder: of the runs.
        config: a file.
        overrides: of all runs.
    """

    folder: Path
    config: Path
    overrides: Sequence[str]
    _runs: list[Path] = field(default_factory=list)

    def fit(self, *overrides: str, inputs: Sequence[str] = (), targets: Sequence[str] = ()) -> Fit:
        """Trains a run; of the config's inputs and targets these, or all. Its last step is the model."""
        run_dir = self.folder / f"{len(self._runs):02}"
        shared = ["track.wandb=disabled", "stop=null", f"run_dir={run_dir}", *self.overrides]
        if self._runs:
            first = self._runs[0]
            shared += [f"data.train=[{first / 'shards' / 'train'}]", f"data.val=[{first / 'shards' / 'val'}]"]
            if (first / "features").exists():
                shutil.copytree(first / "features", run_dir / "features")
        if inputs:  # rows that have none of them are bad samples
            shared.append("data.max_bad_fraction=0.5")
        config = clipx.load_config(self.config, [*shared, *overrides])
        assert isinstance(config, clipx.FitConfig)
        config = replace(
            config,
            inputs={name: config.inputs[name] for name in inputs or config.inputs},
            targets={name: config.targets[name] for name in targets or config.targets},
        )
        began = time.perf_counter()
        status = clipx.train(config)
        if status is not clipx.Status.COMPLETE:
            raise SystemExit(f"{run_dir} ended with {status}")
        self._runs.append(run_dir)
        return Fit(load_fitted(run_dir, device="cpu"), time.perf_counter() - began)


def product_arguments(parser: argparse.ArgumentParser) -> None:
    """The encoder, the product table, and what is changed in all runs."""
    parser.add_argument("model", help="the encoder: a model of configs/tiny.yaml")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="for the config of all runs")
    parser.add_argument("--table", type=Path, required=True, help="folder of `clipx data synth --table`")
    parser.add_argument("--work", type=Path, help="folder of the runs, to be kept; default: none is kept")


@contextmanager
def product_runs(arguments: argparse.Namespace, part: str = "") -> Iterator[FitRuns]:
    """Runs of configs/fit/products.yaml on the table; they share nothing with those of another part."""
    tables = [
        f"data.{name}={arguments.table.absolute() / file}"
        for name, file in (("train", "train.csv"), ("val", "test.csv"))
    ]
    with work_folder(arguments.work) as folder:
        yield FitRuns(folder / part, PRODUCTS, [*tables, f"encoder.from={arguments.model}", *arguments.overrides])


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """A folder that is there already or made, or one that goes at the end."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.absolute()
    else:
        with TemporaryDirectory() as folder:
            yield Path(folder)


def read_table(path: Path, *, picture: str) -> list[Row]:
    """The rows of a CSV file; paths of pictures from where the program runs."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row | {picture: str(path.parent / row[picture]) if row[picture] else ""} for row in rows]


def views(rows: Sequence[Row], *, picture: str, text: str) -> dict[str, list[Row]]:
    """Rows that have both inputs, those as they are, and those that have one, with the other one taken away."""
    return {
        "both": [row for row in rows if row[picture] and row[text]],
        "as_it_is": list(rows),
        picture: [{**row, text: ""} for row in rows if row[picture]],
        text: [{**row, picture: ""} for row in rows if row[text]],
    }


def scores(fitted: Fitted, rows: Sequence[Row]) -> dict[str, float]:
    """Of each target the accuracy, or for a number R2 in its units."""
    found = fitted.predict(rows, absent=True)
    return {
        head.name: score([row[head.name] for row in rows], [one[head.name] for one in found], kind=head.kind)
        for head in fitted.fit_config.heads
    }


def score(true: Sequence[object], predicted: Sequence[object], *, kind: str) -> float:
    """Accuracy, or for numbers R2."""
    true_N, predicted_N = (np.array(values, dtype=float if kind == "number" else str) for values in (true, predicted))
    if kind == "number":
        return float(1 - np.square(true_N - predicted_N).mean() / true_N.var())
    return float((true_N == predicted_N).mean())
