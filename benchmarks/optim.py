"""The share of the optimizer in a training step: clipx's Muon beside timm's and AdamW.

    .venv/bin/python benchmarks/optim.py --model demo --threads 1
    .venv/bin/python benchmarks/optim.py --model tiny --threads 1
    .venv/bin/python benchmarks/optim.py --model b32 --flops

Every contender has a run of its own, as `clipx train` would build it, and takes whole steps; beside them stand the
updates alone (`Optimizer.step` on the gradients of the last step). All take turns. The share is the time of an update
over that of the same repetition's step: with all of Muon in it, AdamW's part for embeddings and norms too; beside it
stands what the update takes beyond that of AdamW alone.

timm's Muon is `optim: {type: timm, name: muon}`, its defaults: five iterations in bf16, all linear layers and
convolutions. `--flops` counts instead of measuring: Muon's products over the model's arithmetic of a global batch.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from harness import Timing, alternate, device_argument, prepare, print_table, ratio, write_rows
from workload import MODELS, Steps, make_batch, open_run

from clipx.config.load import load_config
from clipx.config.optim import AdamWConfig, MuonConfig, OptimConfig, TimmOptimConfig
from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.optim.optimizers import inner_optimizer
from clipx.plan.model import PhaseModel

BATCH = {"b32": 64, "b16": 32, "l14": 8, "demo": 128, "tiny": 256}
CAPTION_TOKENS = 16
OPTIMIZERS: dict[str, OptimConfig] = {
    "muon": MuonConfig(lr=1e-3),
    "muon, 3 iterations": MuonConfig(lr=1e-3, iterations=3),
    "muon, 5 iterations": MuonConfig(lr=1e-3, iterations=5),
    "timm's muon": TimmOptimConfig(name="muon", lr=1e-3),
    "adamw": AdamWConfig(lr=1e-3),
}


class Update:
    """The optimizer's step alone, again and again on the gradients that are there."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __call__(self) -> None:
        """One update."""
        optimizer = inner_optimizer(self.steps.run.stepper.optimizer)
        optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
        optimizer.step()


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each optimizer: times of a step and of its update, and the share."""
    device = prepare(arguments)
    batch = arguments.batch or BATCH[arguments.model]
    precision = "bf16" if device.type == "cuda" else "fp32"
    with ExitStack() as stack:
        steps: dict[str, Steps] = {}
        for name in arguments.optimizers:
            run = stack.enter_context(open_run(arguments.model, batch, precision=precision, optim=OPTIMIZERS[name]))
            batches = [make_batch(run.config, batch, index=index) for index in range(3)]
            steps[name] = Steps(run, batches)
        updates = {f"update of {name}": Update(side) for name, side in steps.items()}
        contenders: dict[str, Callable[[], object]] = {**steps, **updates}
        timings = alternate(contenders, repetitions=arguments.repetitions, warmup=2, device=device)
        elements = sum(weight.numel() for weight in next(iter(steps.values())).run.stepper.model.parameters())
    return [row_of(arguments, name, timings, batch, elements) for name in steps]


def row_of(
    arguments: argparse.Namespace, name: str, timings: dict[str, Timing], batch: int, elements: int
) -> dict[str, object]:
    """One row of the table and of the CSV file."""
    step, update = timings[name], timings[f"update of {name}"]
    share = ratio(update, step)
    return {
        "model": arguments.model,
        "batch": batch,
        "parameters": elements,
        "optimizer": name,
        "step_ms": 1e3 * step.p50,
        "update_p20_ms": 1e3 * update.p20,
        "update_p50_ms": 1e3 * update.p50,
        "update_p80_ms": 1e3 * update.p80,
        "share_p20": share.p20,
        "share_p50": share.p50,
        "share_p80": share.p80,
        "beyond_adamw_p50": (update.p50 - timings["update of adamw"].p50) / step.p50,
        "repetitions": step.count,
    }


def count(model: str) -> list[dict[str, object]]:
    """Muon's FLOPs over those of the model, for the global batch of the config."""
    config = load_config([MODELS[model]], [])
    assert isinstance(config, RunConfig)
    rows: list[dict[str, object]] = []
    for name, optim in OPTIMIZERS.items():
        if isinstance(optim, MuonConfig):
            changed = replace(config, optim=optim)
            phase = PhaseModel(changed, phase_at(changed, 0), caption_tokens=CAPTION_TOKENS)
            own, useful = phase.optimizer_work(1)[0], phase.work.useful * config.global_batch_size
            rows.append(
                {
                    "model": model,
                    "batch": config.global_batch_size,
                    "parameters": phase.num_parameters,
                    "optimizer": name,
                    "muon_tflop": own / 1e12,
                    "model_tflop": useful / 1e12,
                    "flops_share": own / useful,
                }
            )
    return rows


def main() -> None:
    """Measures or counts, prints, and appends to results/optim.csv."""
    parser = argparse.ArgumentParser(description="The share of the optimizer in a training step.")
    parser.add_argument("--model", choices=MODELS, default="demo")
    parser.add_argument("--batch", type=int, default=None, help="pairs of a step")
    parser.add_argument("--flops", action="store_true", help="count instead of measuring")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    device_argument(parser)
    arguments = parser.parse_args()
    arguments.optimizers = list(dict.fromkeys([*arguments.optimizers, "adamw"]))
    rows = count(arguments.model) if arguments.flops else measure(arguments)
    print_table(rows, list(rows[0]))
    out: Path = arguments.out
    print(f"appended to {write_rows('optim', rows, out)}")


if __name__ == "__main__":
    main()
