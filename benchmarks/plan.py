"""Does `clipx plan` say what a pass really takes? Memory and FLOPs, reckoned without arithmetic beside measured ones.

    .venv/bin/python benchmarks/plan.py --model tiny demo --pairs 64 --threads 2
    .venv/bin/python benchmarks/plan.py --model b32 b16 l14 --pairs 64 256 --precision bf16 --device cuda

A pass is forward and backward over pairs with the longest texts, weights and gradients there before. Measured are the
peak of torch's allocator (`harness.peak_memory`; on a CPU every allocation, those inside of operations too) and the
products that torch's counter finds. `useful_ratio` is the work of the plain model, which MFU counts, over those.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import torch
from harness import device_argument, peak_memory, prepare, print_table, write_rows
from torch import Tensor
from workload import MODELS

from clipx.config.load import load_config
from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.data.tokenizer import build_tokenizer
from clipx.distributed.block_transforms import checkpoint_blocks
from clipx.models.clip import build_model
from clipx.models.dry_run import dry_run
from clipx.models.flops import flop_counter
from clipx.plan.model import PhaseModel
from clipx.types import Batch, tensors_of


def measure(config: RunConfig, num_pairs: int, device: torch.device) -> tuple[int, int]:
    """Peak bytes and counted FLOPs of a real pass."""
    towers = build_model(config.model, vocab_size=build_tokenizer(config.model.text).vocab_size, seed=0).to(device)
    for blocks in towers.block_lists():
        checkpoint_blocks(blocks, fraction=config.activation_checkpointing)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)

    def forward(batch: Batch) -> Iterable[Tensor]:
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            return tensors_of(towers(batch, seed=0, patch_drop=config.model.image.patch_drop)).values()

    run = dry_run(
        forward,
        image_size=config.model.image.image_size,
        context_length=config.model.text.context_length,
        device=device,
    )
    run(1)  # makes the gradients
    with flop_counter() as counter:
        run(num_pairs)
    return peak_memory(lambda: run(num_pairs), device), counter.get_total_flops()


def row(config: RunConfig, num_pairs: int, device: torch.device) -> dict[str, object]:
    """Reckoned beside measured."""
    model = PhaseModel(config, phase_at(config, 0), caption_tokens=config.model.text.context_length)
    measured, counted = measure(config, num_pairs, device)
    reckoned, flops = model.pass_bytes(num_pairs), num_pairs * model.counted_flops
    return {
        "precision": config.precision,
        "checkpointing": config.activation_checkpointing,
        "patch_drop": config.model.image.patch_drop,
        "pairs": num_pairs,
        "measured_mb": measured / 1e6,
        "plan_mb": reckoned / 1e6,
        "memory_ratio": reckoned / measured,
        "counted_gflop": counted / 1e9,
        "plan_gflop": flops / 1e9,
        "flops_ratio": flops / counted,
        "useful_ratio": num_pairs * (model.work.useful + model.work.recomputed) / counted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["demo"])
    parser.add_argument("--pairs", type=int, nargs="+", default=[64])
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--checkpointing", type=float, nargs="+", default=[0.0], help="shares of blocks")
    parser.add_argument("--patch-drop", type=float, nargs="+", default=[0.0], help="shares of patches")
    device_argument(parser)
    arguments = parser.parse_args()
    device = prepare(arguments)
    rows = []
    settings = product(
        arguments.model, arguments.precision, arguments.checkpointing, arguments.patch_drop, arguments.pairs
    )
    for name, precision, checkpointing, patch_drop, num_pairs in settings:
        config = load_config([MODELS[name]], [f"precision={precision}", f"activation_checkpointing={checkpointing}"])
        image = replace(config.model.image, patch_drop=patch_drop)
        config = replace(config, model=replace(config.model, image=image))
        rows.append({"model": name} | row(config, num_pairs, device))
        print_table(rows[-1:], list(rows[-1]))
    write_rows("plan", rows, arguments.out)


if __name__ == "__main__":
    main()
