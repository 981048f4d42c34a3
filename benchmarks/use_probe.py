"""Linear probe on a set beside clip-benchmark's: seconds and accuracy; and beside scikit-learn: coefficients.

--peer is the python of an environment with clip-benchmark 1.6.2, numpy below 2.4 and open_clip_torch;
clip_benchmark_probe.py beside this runs in it. Both begin at embeddings that are there (`features`), or at the export
and the pictures (`whole`). Repetitions take turns, each with another split of the peer's, which is one process, so that
its imports, longer than a training, are neither counted nor repeated. `cpu_ratio` compares the processes' time on the
core, which others on the machine disturb less. `coefficients` is the largest difference from scikit-learn's
LogisticRegression at the C that was chosen.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from harness import Timing, ratio
from sklearn.linear_model import LogisticRegression as Theirs

from clipx.data.labelled import open_classification
from clipx.evaluate.features import Features, image_features
from clipx.evaluate.knn import nearest_neighbours
from clipx.evaluate.logistic import Examples, LogisticRegression
from clipx.evaluate.options import Evaluation
from clipx.evaluate.probe import linear_probe
from clipx.pretrained import load

_PEER = Path(__file__).with_name("clip_benchmark_probe.py")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an export in open_clip's format")
    parser.add_argument("set", help="a folder with train and test parts in CLIP_benchmark's layout")
    parser.add_argument("--peer", required=True, help="python of the environment with clip-benchmark")
    parser.add_argument("--whole", action="store_true", help="also from the pictures on")
    parser.set_defaults(repetitions=7)  # of ten seconds each, and forty beside other work


@contextmanager
def peer(arguments: argparse.Namespace, given: Sequence[str]) -> Iterator[Callable[[int], dict[str, float]]]:
    """clip-benchmark, ready: a call with a seed says what it took, and what it reached."""
    threads = str(torch.get_num_threads())
    command = [arguments.peer, "-O", str(_PEER), "--threads", threads, *given]
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None

        def answer(seed: int) -> dict[str, float]:
            asked.write(f"{seed}\n")
            if not (line := answers.readline()):
                raise SystemExit(f"{' '.join(command)} ended; what it wrote stands above")
            return json.loads(line)

        yield answer
        asked.close()


def against_scikit_learn(train: Features, num_classes: int, inverse_penalty: float) -> dict[str, object]:
    """How far the coefficients are apart, and the seconds of one fit of each."""
    began = time.perf_counter()
    ours = LogisticRegression(Examples(train.image_ND, train.label_N), num_classes=num_classes).fit(inverse_penalty)
    own = time.perf_counter() - began
    began = time.perf_counter()
    theirs = Theirs(C=inverse_penalty, tol=1e-10, max_iter=20_000, solver="newton-cg")
    theirs.fit(train.image_ND.astype(np.float64), train.label_N)
    other = time.perf_counter() - began
    apart = np.abs(theirs.coef_ - ours.weight_KD.cpu().numpy()).max()
    return {"coefficients": float(apart), "fit_s": own, "scikit_learn_fit_s": other}


def measure(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    test_set, train_set = (open_classification(arguments.set, split=split) for split in ("test", "train"))
    names = test_set.class_names

    def embedded() -> tuple[Features, Features]:
        pretrained = load(arguments.model, device=device)
        options = {"batch_size": 64, "group": None, "cache": None}
        return image_features(pretrained, train_set, **options), image_features(pretrained, test_set, **options)

    def probe(train: Features, test: Features) -> Evaluation:
        return linear_probe(train, test, class_names=names, device=device)

    train, test = embedded()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/features.npz"
        np.savez(file, train=train.image_ND, train_label=train.label_N, test=test.image_ND, test_label=test.label_N)
        contenders = {"features": (lambda: probe(train, test), ["--features", file])}
        if arguments.whole:
            contenders["whole"] = (lambda: probe(*embedded()), ["--model", arguments.model, "--set", arguments.set])
        for name, (ours, given) in contenders.items():
            seconds, cpu_seconds, theirs = [], [], []
            with peer(arguments, given) as answer:
                for repetition in range(arguments.repetitions):
                    began, before = time.perf_counter(), time.process_time()
                    found = ours()
                    seconds.append(time.perf_counter() - began)
                    cpu_seconds.append(time.process_time() - before)
                    theirs.append(answer(repetition))
            own, other = Timing.of(seconds), Timing.of([one["seconds"] for one in theirs])
            times = ratio(other, own)
            cpu = ratio(Timing.of([one["cpu_seconds"] for one in theirs]), Timing.of(cpu_seconds))
            rows.append(
                {"ours": f"clipx, {name}", "peer": "clip-benchmark", "count": len(train), "repetitions": own.count}
                | {"ours_s": own.p50, "peer_s": other.p50}
                | {"ratio_p20": times.p20, "ratio_p50": times.p50, "ratio_p80": times.p80, "cpu_ratio": cpu.p50}
                | {"acc1": found.metrics["probe_acc1"], "peer_acc1": float(np.mean([one["acc1"] for one in theirs]))}
                | {"peer_acc1_best": max(one["acc1"] for one in theirs), "C": found.derived["probe_C"]}
            )
    neighbours = nearest_neighbours(train, test, class_names=names, k=20, device=device)
    apart = against_scikit_learn(train, len(names), float(rows[0]["C"]))
    return [row | apart | {"knn_acc1": neighbours.metrics["knn_acc1"]} for row in rows]
