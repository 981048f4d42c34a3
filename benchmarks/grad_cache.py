"""What the gradient cache costs: time per pair and peak memory at k micro-batches, beside plain micro-batches.

    .venv/bin/python benchmarks/grad_cache.py --model demo --micro-batch 64
    .venv/bin/python benchmarks/grad_cache.py --model l14 --micro-batch 256 --k 128 --device cuda --repetitions 1

Both are steps of one `Stepper`: cached, of k·m pairs in micro-batches of m; plain, of m pairs in one piece, whose loss
knows these m pairs only. Time per pair counts forward, loss and backward, as the step's own clock reads them: a plain
step's optimizer would be paid every m pairs and would flatter the cache. `whole_step_ratio` counts all, optimizer and
clipping included. Memory is what a step adds to what stood before it: gradients, activations, inputs on the device,
embeddings.
"""

import argparse
from collections.abc import Sequence

import torch
from harness import Timing, alternate, device_argument, peak_memory, prepare, print_table, ratio, write_rows
from workload import MODELS, Steps, make_batch, open_run

from clipx.train.build import Run
from clipx.types import Batch

TOWERS = ("forward", "loss", "backward")
WHOLE = (*TOWERS, "optimizer")


def per_pair(steps: Steps, sections: tuple[str, ...]) -> Timing:
    """Seconds per pair in some sections of a step, over the calls that were made."""
    size = len(steps.batches[0]) * steps.num_steps
    seconds = [sum(outcome.seconds[section] for section in sections) for outcome in steps.outcomes]
    return Timing.of([sum(seconds[i : i + steps.num_steps]) / size for i in range(0, len(seconds), steps.num_steps)])


def step_memory(steps: Steps, run: Run) -> int:
    """Peak bytes of one call above a model without gradients."""
    run.stepper.optimizer.zero_grad()
    return peak_memory(steps, run.runtime.device)


def measure(run: Run, batch: Batch, k: int, arguments: argparse.Namespace) -> dict[str, object]:
    """One row: k micro-batches through the cache, beside as many plain ones (at most 8, for they are all alike).

    On CUDA reading the peak costs nothing, and the calls that give it are timed too.
    """
    m, device = arguments.micro_batch, run.runtime.device
    pieces = batch.micro_batches(m)[: min(k, 8)]
    Steps(run, pieces[:1])()  # compiles and searches what it must
    contenders = {"cached": Steps(run, [batch]), "plain": Steps(run, pieces, num_steps=len(pieces))}
    peaks = {name: step_memory(steps, run) for name, steps in contenders.items()}
    repetitions = arguments.repetitions - 1
    if device.type == "cpu":
        repetitions += 1
        for steps in contenders.values():
            steps.outcomes.clear()
    if repetitions:
        alternate(contenders, repetitions=repetitions, warmup=0, device=device)
    cached, plain = (per_pair(steps, TOWERS) for steps in contenders.values())
    whole_cached, whole_plain = (per_pair(steps, WHOLE) for steps in contenders.values())
    slower = ratio(cached, plain)
    return {
        "model": arguments.model,
        "device": arguments.device,
        "precision": run.config.precision,
        "k": k,
        "micro_batch": m,
        "pairs": len(batch),
        "cached_ms_per_pair": 1000 * cached.p50,
        "plain_ms_per_pair": 1000 * plain.p50,
        "ratio_p20": slower.p20,
        "ratio_p50": slower.p50,
        "ratio_p80": slower.p80,
        "whole_step_ratio": ratio(whole_cached, whole_plain).p50,
        "repetitions": slower.count,
        "cached_mb": peaks["cached"] / 1e6,
        "plain_mb": peaks["plain"] / 1e6,
        "pairs_per_s": 1 / whole_cached.p50,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device_argument(parser)
    parser.add_argument("--model", choices=MODELS, default="demo")
    parser.add_argument("--micro-batch", type=int, default=64, help="pairs per micro-batch (default: %(default)s)")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8], help="micro-batches of a step")
    arguments = parser.parse_args(argv)
    device = prepare(arguments)
    precision = "bf16" if device.type == "cuda" else "fp32"
    rows = []
    for k in arguments.k:
        size = k * arguments.micro_batch
        changes = {"micro_batch_size": arguments.micro_batch}
        with open_run(arguments.model, size, precision=precision, **changes) as run:
            rows.append(measure(run, make_batch(run.config, size, index=0), k, arguments))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    write_rows("grad_cache", rows, arguments.out)
    columns = ["k", "pairs", "cached_ms_per_pair", "plain_ms_per_pair", "ratio_p50", "whole_step_ratio"]
    print_table(rows, [*columns, "cached_mb", "plain_mb", "pairs_per_s"])


if __name__ == "__main__":
    main()
