"""What a step must take on an H100 and an H200, computed before it is measured: text, and results/budget.csv.

    .venv/bin/python benchmarks/budget.py

The towers' forward and backward pass runs over fake tensors at full size, and every operation is counted
(`step_traffic.py`); open_clip's model and loss likewise. Predicted time, in ms:

- products: FLOPs over 790 TFLOP/s, which cuBLAS reached on an H200 (8192 cubed, bf16, random), at PRODUCTS of it;
- everything else: bytes over the memory's speed (H200: 4.3 TB/s copied there; H100: 0.9 of its 3.35), at MEMORY of it;
- attention: bytes over the memory's speed at ONE_TILE of it, where sequences have one tile; else arithmetic of whole
  tiles at what flash attention 2 is assumed to reach, ATTENTION;
- loss: 8 b G d FLOPs at LOSS, and LOSS_START_MS; alone also the host's part if that is more;
- optimizer: 40 bytes a weight (norm, clipping, AdamW);
- pixels: bytes over the link, where the device waits for them;
- host: launches at HOST_US each, where that is more than the device's part;
- communication on 8 GPUs: the collectives of `clipx plan` that no arithmetic hides.

Modes: `floor`, all of it at its ceiling; `before`, eager with flash attention alone, casts in each layer and pixels
copied in turn; `eager`, the code as it is: attention in one tile up to 128 tokens, copies of weights once a step,
pixels beside the step; `compiled`, the same with all operations between two products as one kernel, at best.
MFU is of useful work, at 989.4 TFLOP/s. These are predictions: none was measured.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness import RESULTS, print_table, write_rows
from step_traffic import CAPTION_TOKENS, Counted, count_clip_loss, count_clipx, count_open_clip
from workload import MODELS

from clipx.config.geometry import resolve_geometry
from clipx.config.load import load_config
from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.distributed.hardware import find_gpu
from clipx.objectives.build import loss_shape
from clipx.plan.cluster import Cluster
from clipx.plan.communication import transfers
from clipx.plan.model import PhaseModel

CASES = (("b32", 2048, True), ("b16", 1024, True), ("l14", 512, False), ("l14", 256, True))
"""Models with their best micro-batches, and whether open_clip fits with its own."""
RATE = 790e12
MEMORY_SPEED = {"H100": 0.9 * 3.35e12, "H200": 4.3e12}
PRODUCTS, MEMORY = 0.825, 0.87
ATTENTION = {"forward": 290e12, "backward": 230e12}
"""FLOP/s of whole tiles of 128 x 128 with heads of 64: assumed."""
ONE_TILE = {16: 0.33, 50: 0.70}
"""Share of the memory's speed by the tokens of a sequence: latencies counted in compiled code, not measured."""
LOSS = {512: 536e12, 640: 543e12, 768: 550e12}
"""FLOP/s of the loss kernels and their products by width: cycles counted in compiled code, not measured."""
LOSS_START_MS = 0.06
"""Of a call's launches, one after the other, what no arithmetic fills."""
LOSS_HOST_MS = {4096: 0.5, 32_768: 1.4}
"""The host's part of one call by G: launches counted, not timed on a GPU's machine."""
LOSS_BEFORE = {512: 400e12, 768: 440e12}
LOSS_HOST_MS_BEFORE = {4096: 1.3, 32_768: 8.0}
CACHE = (8, 256)
"""Micro-batches, and pairs of each, at which the plan for a GPU measures the gradient cache of L/14."""
LINK = 55e9
HOST_US, HOST_US_BEFORE = 23.5, 19.0
"""For each operation: those that became one had taken little of the host's time (LOG.md, what a step asks for)."""
WANTED_MFU = 0.45
MODES = ("floor", "before", "eager", "compiled")
_KINDS = ("norms", "activations", "residuals", "casts", "sums", "copies", "others")
TERMS = ("products", "attention", *_KINDS, "fused", "loss", "optimizer", "pixels", "host", "communication")


def terms_of(side: Counted, *, gpu: str, mode: str) -> dict[str, float]:
    """Milliseconds of a step on one GPU, by term, without the loss."""
    traffic, ideal = side.traffic, mode == "floor"
    memory = MEMORY_SPEED[gpu] * (1 if ideal else MEMORY)
    if ideal:
        attention = (traffic.flash_bytes + sum(traffic.one_tile_bytes.values())) / memory
    else:
        attention = sum(flops / ATTENTION[direction] for direction, flops in traffic.tile_flops.items())
        attention += sum(size / MEMORY_SPEED[gpu] / ONE_TILE[n] for n, size in traffic.one_tile_bytes.items())
    terms = {
        "products": traffic.product_flops / RATE / (1 if ideal else PRODUCTS),
        "attention": attention,
        "optimizer": 40.0 * side.num_weights / memory,
        "pixels": side.pixel_bytes / LINK,
    }
    kinds = {"fused": traffic.fused_bytes} if mode == "compiled" else dict(traffic.bytes)
    terms |= {kind: size / memory for kind, size in kinds.items()}
    device = sum(terms.values())
    terms["host"] = 0.0 if ideal else max(0.0, 1e-3 * _host_ms(side, mode) - device)
    return {name: 1e3 * seconds for name, seconds in terms.items()}


def _host_ms(side: Counted, mode: str) -> float:
    each = HOST_US_BEFORE if mode == "before" else HOST_US
    return 1e-3 * each * sum(side.traffic.launches[kind] for kind in ("products", "attention", "others"))


def exposed_ms(config: RunConfig, model: PhaseModel, *, gpu: str, gpus: int, towers_ms: float) -> tuple[float, float]:
    """The loss, and the communication that nothing hides, with `gpus` of them in one machine."""
    geometry = resolve_geometry(config.global_batch_size, config.micro_batch_size, gpus, captions_per_image=1)
    kind, shape = find_gpu(gpu), loss_shape(config, geometry)
    cluster = Cluster(
        gpu=kind,
        gpus_per_node=8,
        mfu=WANTED_MFU,
        intra_node_bytes_per_s=kind.link_bytes_per_s,
        inter_node_bytes_per_s=kind.network_bytes_per_s,
    )
    hidden = {"backward": 2 / 3 * towers_ms, "towers": towers_ms, "": 0.0}
    spent = dict.fromkeys(hidden, 0.0)
    for one in transfers(config, model, geometry):
        spent[one.behind] += 1e3 * one.times * cluster.seconds(one.collective, one.payload, world_size=gpus)
    loss = LOSS_START_MS + 1e3 * model.objective.loss_cost(shape).flops / LOSS[shape.embed_dim]
    return loss, sum(max(0.0, spent[behind] - hidden[behind]) for behind in hidden)


def rows_of_model(name: str, batch_size: int, *, beside_open_clip: bool) -> Iterator[dict[str, object]]:
    """Rows of one model at one batch size, all modes, GPUs and numbers of them."""
    config = load_config([MODELS[name]], ["precision=bf16", "micro_batch_size=auto"])
    model = PhaseModel(config, phase_at(config, 0), caption_tokens=CAPTION_TOKENS)
    useful = batch_size * model.work.useful
    before, theirs = count_clipx(config, batch_size, before=True), count_open_clip(name, batch_size)
    now = count_clipx(config, batch_size)
    for gpu in MEMORY_SPEED:
        peer_ms = sum(terms_of(theirs, gpu=gpu, mode="eager").values())
        for gpus in (1, 8):
            of_gpus = replace(config, global_batch_size=gpus * batch_size, micro_batch_size=batch_size)
            for mode in MODES:
                side = before if mode == "before" else now
                terms = terms_of(side, gpu=gpu, mode=mode)
                towers_ms = sum(terms.values()) - terms["optimizer"] - terms["pixels"] - terms["host"]
                terms["loss"], terms["communication"] = exposed_ms(
                    of_gpus, model, gpu=gpu, gpus=gpus, towers_ms=towers_ms
                )
                host_ms = _host_ms(side, mode)
                yield (
                    _row(name, mode, batch_size, gpu, gpus)
                    | _figures(terms, gpus * batch_size, useful)
                    | {"host_ms": host_ms, "host_bound_below": round(batch_size * host_ms / sum(terms.values()))}
                    | {f"of_{term}_ms": terms.get(term, 0.0) for term in TERMS}
                )
                if mode == "eager" and gpus == 1 and beside_open_clip:
                    faster = {"times_open_clip": peer_ms / sum(terms.values())}
                    yield _row(name, "in turn", batch_size, gpu, 1) | _figures(terms, batch_size, useful) | faster
        if beside_open_clip:
            figures = {"ms": peer_ms, "pairs_per_s": 1e3 * batch_size / peer_ms}
            yield _row(name, "open_clip", batch_size, gpu, 1) | figures


def rows_of_losses() -> Iterator[dict[str, object]]:
    """The loss alone, beside open_clip's."""
    for size, width in ((4096, 512), (32_768, 512), (32_768, 768)):
        traffic = count_clip_loss(size, width)
        flops, host_ms = 8.0 * size**2 * width, LOSS_HOST_MS[size]
        ours = max(LOSS_START_MS + 1e3 * flops / LOSS[width], host_ms)
        before = max(1e3 * flops / LOSS_BEFORE[width], LOSS_HOST_MS_BEFORE[size])
        for gpu, speed in MEMORY_SPEED.items():
            memory_s = sum(traffic.bytes.values()) / speed / MEMORY
            theirs = 1e3 * (traffic.product_flops / RATE / PRODUCTS + memory_s)
            row = {"ms": ours, "host_ms": host_ms, "times_open_clip": theirs / ours}
            yield _row(f"info_nce {width}", "triton", size, gpu, 1) | row
            earlier = {"ms": before, "host_ms": LOSS_HOST_MS_BEFORE[size], "times_open_clip": theirs / before}
            yield _row(f"info_nce {width}", "before", size, gpu, 1) | earlier
            yield _row(f"info_nce {width}", "open_clip", size, gpu, 1) | {"ms": theirs}


def _figures(terms: Mapping[str, float], pairs: int, useful: float) -> dict[str, object]:
    ms, peak = sum(terms.values()), find_gpu("H200").bf16_flops
    least_ms = 1e3 * useful / peak
    return {
        "ms": ms,
        "pairs_per_s": 1e3 * pairs / ms,
        "mfu": least_ms / ms,
        "wanted_ms": least_ms / WANTED_MFU,
        "useful_ms": least_ms,
    }


def _row(what: str, mode: str, batch: int, gpu: str, gpus: int) -> dict[str, object]:
    return {"what": what, "mode": mode, "batch": batch, "gpu": gpu, "gpus": gpus}


def what_stands_between(row: Mapping[str, object]) -> list[tuple[str, float]]:
    """The terms of a step that are not the model's arithmetic at the peak, in ms, the largest first."""
    over = {term: float(str(row[f"of_{term}_ms"])) for term in TERMS}
    over["products"] -= float(str(row["useful_ms"]))
    return sorted(((term, ms) for term, ms in over.items() if ms > 0), key=lambda item: -item[1])


def print_budget(rows: Sequence[Mapping[str, object]]) -> None:
    """The table of steps, then for each model on one H200 what stands between it and the wanted MFU."""
    steps = [row for row in rows if "host_bound_below" in row]
    print_table(
        steps, ["what", "batch", "mode", "gpu", "gpus", "ms", "pairs_per_s", "mfu", "host_ms", "host_bound_below"]
    )
    print()
    print_table(
        [row for row in rows if "host_bound_below" not in row],
        ["what", "mode", "batch", "gpu", "ms", "times_open_clip", "ratio"],
    )
    for row in steps:
        if (row["gpu"], row["gpus"]) == ("H200", 1) and row["mode"] != "floor":
            ms, wanted = float(str(row["ms"])), float(str(row["wanted_ms"]))
            setting = f"{row['what']} at {row['batch']}, {row['mode']}"
            print(f"\n{setting}: {ms:.0f} ms, and {wanted:.0f} ms would be an MFU of {WANTED_MFU:.0%}.")
            terms = what_stands_between(row)
            print(
                "beside its arithmetic at the peak: "
                + ", ".join(f"{term} {over:.1f}" for term, over in terms if over >= 0.05)
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of budget.csv, which is written anew")
    arguments = parser.parse_args()
    rows = [row for name, size, beside in CASES for row in rows_of_model(name, size, beside_open_clip=beside)]
    rows += rows_of_losses()
    k, micro_batch = CACHE
    rows += [
        _row("l14 cache", f"k={k}", k * micro_batch, gpu, 1) | {"ratio": (4 * k - 1) / (3 * k)} for gpu in MEMORY_SPEED
    ]
    (arguments.out / "budget.csv").unlink(missing_ok=True)
    write_rows("budget", rows, arguments.out)
    print_budget(rows)


if __name__ == "__main__":
    main()
