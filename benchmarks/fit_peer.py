"""AutoGluon beside clipx on the product table: the same encoder, rows, epochs and batch, on one core, in turn.

MODEL is an export in the format of transformers, which both read. clipx learns category and price in one run;
AutoGluon, whose models have one target, in one for each: there is a row for each, in which the times of clipx are of
both targets, and one of the peer's times `together`. `epoch_s` is the median over epochs, from the first batch to the
last, without evaluation; `epoch_ratio` is above 1 where clipx is faster. `whole_s` is from the tables to the model, and
`cpu_s` its time on the core, which others on the machine disturb less. The peer is one process for all rounds: its
imports, longer than an epoch, are not counted. Figures (accuracy, or R2 in the target's units) are of test.csv's rows
as they are, with the last weights of both.

--peer is the python of an environment with autogluon.multimodal 1.6.3; peer_autogluon.py beside this runs in it.
Learning rates of both are given, frozen and all; the defaults were the best of three for each, on another table. What
else clipx has as the peer: a fusion by concatenation, a tenth of the steps of warmup, rates that fall from block to
block by a tenth.
"""

import argparse
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fitting import product_arguments, product_runs, read_table, score, scores
from harness import Timing

_PEER = Path(__file__).with_name("peer_autogluon.py")
TARGETS = {"category": "class", "price": "number"}
MODES = ("frozen", "all")

Answer = Callable[[Mapping[str, object]], dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """What one training took and reached."""

    scores: Mapping[str, float]
    epochs: list[float]
    seconds: float
    cpu_seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    product_arguments(parser)
    parser.add_argument("--peer", required=True, help="python of the environment with AutoGluon")
    parser.add_argument("--epochs", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="divides the table's rows (default: %(default)s)")
    parser.add_argument("--train", nargs="+", choices=MODES, default=MODES, help="default: both")
    parser.add_argument("--lr", type=float, nargs=2, default=(3e-3, 2e-3), help="clipx's (default: %(default)s)")
    parser.add_argument(
        "--peer-lr", type=float, nargs=2, default=(3e-3, 1e-3), help="AutoGluon's (default: %(default)s)"
    )
    parser.add_argument("--core", type=int, help="the core that all processes use")
    parser.set_defaults(repetitions=1)


@contextmanager
def peer(arguments: argparse.Namespace) -> Iterator[Answer]:
    """AutoGluon, ready: a call with a job gives what it took, and what it predicts."""
    given = [arguments.model, str(arguments.table), str(arguments.epochs), str(arguments.batch)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    pipe = subprocess.PIPE
    command = [arguments.peer, str(_PEER), *given]
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None

        def answer(job: Mapping[str, object]) -> dict[str, Any]:
            asked.write(json.dumps(job) + "\n")
            if not (line := answers.readline()):
                raise SystemExit(f"{' '.join(command)} ended; what it wrote stands above")
            return json.loads(line)

        yield answer
        asked.close()


def epoch_seconds(run_dir: Path, *, epochs: int) -> list[float]:
    """Seconds of each epoch's steps, without what paused the training, from rows of every step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    if len(rows) % epochs:
        raise SystemExit(
            f"{len(rows)} steps are not {epochs} whole epochs: the table's rows are no multiple of --batch"
        )
    step_s = np.array([row["elapsed_s"] - row["pause_s"] for row in rows])
    return step_s.reshape(epochs, -1).sum(axis=1).tolist()


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in usage)


def train_ours(arguments: argparse.Namespace, train: str, seed: int) -> Trained:
    """A run of clipx with both targets, from the tables on."""
    options = [f"encoder.train={train}", f"seed={seed}", f"optim.lr={arguments.lr[MODES.index(train)]}"]
    options += [f"epochs={arguments.epochs}", f"global_batch_size={arguments.batch}", "track.every_steps=1"]
    rows = len(read_table(arguments.table / "train.csv", picture="photo"))
    options += ["fusion=concat", f"optim.warmup_steps={rows * arguments.epochs // arguments.batch // 10}"]
    options += [f"optim.{tower}.layer_decay=0.9" for tower in ("image", "text")]
    with product_runs(arguments, f"{train}{seed}") as runs:
        before = _cpu_seconds()
        done = runs.fit(*options, targets=list(TARGETS))
        cpu_seconds = _cpu_seconds() - before
        epochs = epoch_seconds(Path(done.model.fit_config.run_dir), epochs=arguments.epochs)
    found = scores(done.model, read_table(arguments.table / "test.csv", picture="photo"))
    return Trained(found, epochs, done.seconds, cpu_seconds)


def train_theirs(arguments: argparse.Namespace, answer: Answer, job: Mapping[str, Any]) -> tuple[Trained, str]:
    """A model of the peer's for one target, and its libraries' versions."""
    target = job["target"]
    found = answer({**job, "kind": TARGETS[target], "lr": arguments.peer_lr[MODES.index(job["train"])]})
    true = [row[target] for row in read_table(arguments.table / "test.csv", picture="photo")]
    reached = {target: score(true, found["predicted"], kind=TARGETS[target])}
    return Trained(reached, found["epochs"], found["seconds"], found["cpu_seconds"]), found["versions"]


def together(models: Sequence[Trained]) -> Trained:
    """All targets as one: a model of each, one after another."""
    return Trained(
        {name: value for model in models for name, value in model.scores.items()},
        [sum(epoch) for epoch in zip(*(model.epochs for model in models), strict=True)],
        sum(model.seconds for model in models),
        sum(model.cpu_seconds for model in models),
    )


def compared(ours: Trained, theirs: Trained) -> dict[str, object]:
    """The times of both."""
    own, other = Timing.of(ours.epochs), Timing.of(theirs.epochs)
    return {
        "ours_epoch_s": own.p50,
        "peer_epoch_s": other.p50,
        "epoch_ratio": other.p50 / own.p50,
        "ours_whole_s": ours.seconds,
        "peer_whole_s": theirs.seconds,
        "ours_cpu_s": ours.cpu_seconds,
        "peer_cpu_s": theirs.cpu_seconds,
    }


def measure(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    with peer(arguments) as answer:
        for seed, train in product(range(arguments.repetitions), arguments.train):
            ours = train_ours(arguments, train, seed)
            theirs: dict[str, Trained] = {}
            for target in TARGETS:
                theirs[target], versions = train_theirs(
                    arguments, answer, {"target": target, "train": train, "seed": seed}
                )
            shape = {"seed": seed, "encoder_train": train, "epochs": arguments.epochs, "batch": arguments.batch}
            for target, model in theirs.items():
                reached = {"ours": ours.scores[target], "peer": model.scores[target]}
                yield {"target": target, **shape, **reached, **compared(ours, model), "versions": versions}
            both = together(list(theirs.values()))
            yield {"target": "together", **shape, **compared(ours, both), "versions": versions}
