"""Pairs per second of W processes, strong and weak, with where a step's time goes.

    .venv/bin/python benchmarks/scaling.py --model demo --batch 128 --world-sizes 1 2 4
    .venv/bin/python benchmarks/scaling.py --model b16 --batch 1024 --device cuda --world-sizes 1 2 4 8

strong: `--batch` pairs over all ranks; weak: `--batch` pairs on each rank. Efficiency is pairs per second over W times
those of one process. On CUDA each rank has a GPU. On a CPU each rank has one thread (`--threads`), so efficiency says
what gloo, the gathered loss and DDP's all-reduce cost while cores are free, and what sharing costs as soon as W times
threads reach the cores that the machine has to give: ranks then also share caches and memory bandwidth.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from harness import alternate, device_argument, prepare, print_table, write_rows
from workload import MODELS, Steps, make_batch, open_run, write_pairs

SECTIONS = ("forward", "loss", "backward", "optimizer", "communication")


def work(arguments: argparse.Namespace, device: torch.device) -> None:
    """The life of one rank: steps, then rank 0 writes the row."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    with open_run(arguments.model, arguments.batch, precision=precision, folder=arguments.scratch) as run:
        rank, world_size = run.runtime.rank, run.runtime.world_size
        batches = [make_batch(run.config, arguments.batch // world_size, index=i, rank=rank) for i in range(2)]
        steps = Steps(run, batches, num_steps=arguments.steps)
        timing = alternate(
            {"step": steps}, repetitions=arguments.repetitions, warmup=arguments.warmup, device=run.runtime.device
        )["step"]
        pairs = arguments.batch * arguments.steps
        outcomes = steps.outcomes[-arguments.repetitions * arguments.steps :]
        row: dict[str, object] = {
            "pairs_per_s_p20": pairs / timing.p80,
            "pairs_per_s_p50": pairs / timing.p50,
            "pairs_per_s_p80": pairs / timing.p20,
            "repetitions": timing.count,
            "precision": precision,
        }
        row |= {f"{name}_ms": 1000 * median(outcome.seconds[name] for outcome in outcomes) for name in SECTIONS}
        if run.runtime.is_main:
            (arguments.scratch / "row.json").write_text(json.dumps(row))
        run.runtime.barrier()


def launch(arguments: argparse.Namespace, world_size: int, batch: int) -> dict[str, object]:
    """Runs `work` on W processes under torchrun; returns rank 0's row.

    Raises:
        SystemExit: a rank failed; its message stands above.
    """
    own = ["model", "device", "repetitions", "warmup", "steps"]
    options = [text for name in own for text in (f"--{name}", str(getattr(arguments, name)))]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
        command += [
            __file__,
            *options,
            "--batch",
            str(batch),
            "--threads",
            str(arguments.threads),
            "--scratch",
            scratch,
        ]
        write_pairs(Path(scratch))
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{world_size} processes with {batch} pairs: exit code {done.returncode}")
        row: dict[str, object] = json.loads((Path(scratch) / "row.json").read_text())
        return row


def scale(arguments: argparse.Namespace, kind: str, world_sizes: Sequence[int]) -> list[dict[str, object]]:
    """The rows of one kind of scaling, the first world size being the unit of efficiency."""
    rows: list[dict[str, object]] = []
    unit = 0.0
    for world_size in world_sizes:
        batch = arguments.batch * (world_size if kind == "weak" else 1)
        row = launch(arguments, world_size, batch)
        per_process = float(str(row["pairs_per_s_p50"])) / world_size
        unit = unit or per_process
        shape = {"model": arguments.model, "device": arguments.device, "scaling": kind, "world_size": world_size}
        rows.append(
            {**shape, "global_batch": batch, "threads_per_rank": arguments.threads, "efficiency": per_process / unit}
            | row
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device_argument(parser)
    parser.set_defaults(threads=1)
    parser.add_argument("--model", choices=MODELS, default="demo")
    parser.add_argument("--batch", type=int, default=128, help="pairs: strong, of all ranks; weak, of each")
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2, 4], help="the first is the unit")
    parser.add_argument("--kinds", nargs="+", choices=("strong", "weak"), default=["strong", "weak"])
    parser.add_argument("--steps", type=int, default=1, help="steps per timed repetition (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="repetitions before the clock runs")
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)  # of a rank: it works and does not launch
    arguments = parser.parse_args(argv)
    device = prepare(arguments)
    if arguments.scratch is not None:
        work(arguments, device)
        return
    rows = [row for kind in arguments.kinds for row in scale(arguments, kind, arguments.world_sizes)]
    write_rows("scaling", rows, arguments.out)
    columns = ["scaling", "world_size", "global_batch", "pairs_per_s_p50", "efficiency"]
    print_table(rows, [*columns, *(f"{name}_ms" for name in SECTIONS)])


if __name__ == "__main__":
    main()
