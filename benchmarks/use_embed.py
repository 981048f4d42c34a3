"""Shard samples a second from tars to stored embeddings, beside clip-retrieval's inference and sentence-transformers.

Each pass is a process of its own, on one core if --core names it; the clock starts when the model is loaded, and stops
when picture and text embeddings and their keys are on disk. `cpu_ratio` compares the processes' time on the core, which
others on the machine disturb less. --peer-python is an environment with clip-retrieval (see peer_clip_retrieval.py).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from harness import Timing, ratio, speed_rows

_HERE = Path(__file__).parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an export that transformers and open_clip read")
    parser.add_argument("--from", dest="shards", nargs="+", required=True, help="tar files")
    parser.add_argument("--batch", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--core", type=int, help="the core that all processes use")
    parser.add_argument("--peer-python", help="python of an environment with clip-retrieval")


def measure(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    contenders: dict[str, list[str]] = {"clipx": [sys.executable, str(_HERE / "peer_clipx.py")]}
    if arguments.peer_python:
        contenders["clip-retrieval"] = [arguments.peer_python, str(_HERE / "peer_clip_retrieval.py")]
    contenders["sentence-transformers"] = [sys.executable, str(_HERE / "peer_sentence_transformers.py")]
    names = list(contenders)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    counts = set()
    for repetition in range(arguments.repetitions):
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            found = _pass(contenders[name], arguments)
            wall[name].append(found["seconds"])
            cpu[name].append(found["cpu_seconds"])
            counts.add(found["samples"])
    (count,) = counts  # all embedded the same samples
    rows = speed_rows({name: Timing.of(samples) for name, samples in wall.items()}, int(count))
    for row in rows:
        row["cpu_ratio"] = ratio(Timing.of(cpu[str(row["peer"])]), Timing.of(cpu["clipx"])).p50
    return [{"model": Path(arguments.model).name, **row} for row in rows]


def _pass(command: Sequence[str], arguments: argparse.Namespace) -> dict[str, float]:
    """Runs a contender; gives what its last line says: samples, seconds and cpu_seconds."""
    threads = str(arguments.threads or 1)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    pin: Callable[[], None] | None = None
    if arguments.core is not None:
        pin = lambda: os.sched_setaffinity(0, {arguments.core})  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [*command, arguments.model, str(Path(folder) / "out"), str(arguments.batch), *arguments.shards],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            preexec_fn=pin,
        )
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.rstrip().rpartition("\n")[2])
