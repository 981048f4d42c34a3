"""AutoGluon's MultiModalPredictor on a table of products, in an environment of its own, for fit_peer.py beside this.

    echo '{"target": "category", "kind": "class", "train": "all", "lr": 1e-4, "seed": 0}' |
        PEER/bin/python benchmarks/peer_autogluon.py EXPORT TABLE EPOCHS BATCH

EXPORT is a CLIP that transformers reads, and clip_image and clip_text both; TABLE is a folder with train.csv and
test.csv. A number is learned as its logarithm. For each line that it reads, it trains a model and prints a line of
JSON: what it predicts of the rows of test.csv, the seconds of each epoch, those of the whole, and how many weights it
has trained.

Two options differ from AutoGluon's own because what it is compared with has no such thing: pictures are not augmented
(trivial_augment is left out), and test.csv is looked at once, after the last epoch, so that no checkpoint is chosen by
it. A LoRA whose filter matches no layer is how its towers are frozen: their last norms and projections still learn.
"""

import contextlib
import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pandas as pd
import torch
from autogluon.multimodal import MultiModalPredictor
from autogluon.multimodal.learners.base import BaseLearner

INPUTS = {"photo": "image_path", "title": "text"}
TOWERS = {"clip_image": "image", "clip_text": "text"}
KINDS = {"class": "multiclass", "number": "regression"}
LIBRARIES = ("autogluon.multimodal", "torch", "transformers", "lightning")


class Epochs(lightning.Callback):
    """Seconds from the start of each epoch to the end of its last batch: neither evaluation nor saving."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.weights = 0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.weights = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.began = self.ended = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.ended = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.seconds.append(self.ended - self.began)


@contextlib.contextmanager
def watched() -> Iterator[Epochs]:
    """A callback of the trainings within; AutoGluon takes none from outside."""
    epochs = Epochs()
    own = BaseLearner.get_callbacks_per_run

    def callbacks(learner: BaseLearner, *arguments: Any, is_train: bool = True, **options: Any) -> list[Any]:
        found = own(learner, *arguments, is_train=is_train, **options)
        return [*found, epochs] if is_train else found

    BaseLearner.get_callbacks_per_run = callbacks
    try:
        yield epochs
    finally:
        BaseLearner.get_callbacks_per_run = own


def settings(export: str, job: dict[str, Any], *, epochs: int, batch: int) -> dict[str, Any]:
    """AutoGluon's hyperparameters; what is not named is its default."""
    found: dict[str, Any] = {"model.names": [*TOWERS, "fusion_mlp"]}
    for tower, kind in TOWERS.items():
        found[f"model.{tower}.checkpoint_name"] = export
        found[f"model.{tower}.data_types"] = [kind]
    found["model.clip_image.train_transforms"] = ["resize_shorter_side", "center_crop"]
    found |= {"env.num_gpus": 0, "env.precision": "32", "env.batch_size": batch, "env.per_gpu_batch_size": batch}
    found |= {"env.num_workers": 0, "env.num_workers_inference": 0}  # its fastest on one core
    found |= {"optim.lr": job["lr"], "optim.max_epochs": epochs}
    found |= {"optim.val_check_interval": 1.0, "optim.check_val_every_n_epoch": epochs}
    if job["train"] == "frozen":
        found |= {"optim.peft": "lora", "optim.lora.filter": ["^$"]}
    return found


def read(table: Path, part: str) -> pd.DataFrame:
    """The rows of a part, with the paths of its photographs; an absent photograph or title is an empty text."""
    rows = pd.read_csv(table / f"{part}.csv", dtype=str, keep_default_na=False)
    rows["photo"] = [str((table / path).absolute()) if path else "" for path in rows["photo"]]
    return rows


def seconds_of_cpu() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in usage)


def fit(job: dict[str, Any], tables: dict[str, pd.DataFrame], options: dict[str, Any]) -> dict[str, Any]:
    """Trains the model of a job, and predicts the held-out rows."""
    target, is_number = job["target"], job["kind"] == "number"
    used = {part: rows[[*INPUTS, target]].copy() for part, rows in tables.items()}
    if is_number:
        for rows in used.values():
            rows[target] = np.log(rows[target].astype(float))
    with tempfile.TemporaryDirectory() as folder, watched() as epochs:
        predictor = MultiModalPredictor(
            label=target,
            problem_type=KINDS[job["kind"]],
            path=f"{folder}/model",
            verbosity=0,
            enable_progress_bar=False,
        )
        began, before = time.perf_counter(), seconds_of_cpu()
        predictor.fit(
            used["train"],
            tuning_data=used["test"],
            hyperparameters=options,
            column_types=INPUTS,
            seed=job["seed"],
        )
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": seconds_of_cpu() - before}
        predicted = predictor.predict(used["test"][[*INPUTS]])
    values = np.exp(predicted.astype(float)) if is_number else predicted
    return {**took, "epochs": epochs.seconds, "weights": epochs.weights, "predicted": values.tolist()}


def main(export: str, table: str, epochs: str, batch: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tables = {part: read(Path(table), part) for part in ("train", "test")}
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    for line in sys.stdin:
        job = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            found = fit(job, tables, settings(export, job, epochs=int(epochs), batch=int(batch)))
        print(json.dumps({**found, "versions": versions}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
