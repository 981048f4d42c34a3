"""What a step must take on an H100 and an H200, computed before it is measured: text, and results/budget.csv.

    .venv/bin/python benchmarks/budget.py

The towers' forward and backward pass runs over fake tensors at full size, and every operation is counted
(`traffic.py`); open_clip's model and loss likewise. Predicted time, in ms:

- products: FLOPs over 790 TFLOP/s, which cuBLAS reached on an H200 (8192 cubed, bf16, random), at PRODUCTS of it;
- everything else: bytes over the memory's speed (H200: 4.3 TB/s copied there; H100: 0.9 of its 3.35), at MEMORY of it;
- attention: arithmetic of whole tiles at what flash attention 2 is assumed to reach, ATTENTION;
- loss: 8 b G d FLOPs at LOSS, alone also the host's part if that is more;
- optimizer: 40 bytes a weight (norm, clipping, AdamW); pixels: bytes over the link;
- host: launches at HOST_US each, where that is more than the device's part;
- communication on 8 GPUs: the collectives of `clipx plan` that no arithmetic hides.

Modes: `floor`, all of it at its ceiling; `eager`; `compiled`, where operations between two products are one kernel, at
best; `levers`, compiled, with attention over at most 64 tokens at the memory's speed and pixels copied beside the step.
MFU is of useful work, at 989.4 TFLOP/s. These are predictions: none was measured.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, print_table, write_rows
from torch._subclasses.fake_tensor import FakeTensorMode
from traffic import Traffic
from workload import MODELS

from clipx.config.geometry import resolve_geometry
from clipx.config.load import load_config
from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.distributed.block_transforms import checkpoint_blocks
from clipx.distributed.hardware import find_gpu
from clipx.models.dry_run import dry_run
from clipx.objectives.build import loss_shape
from clipx.plan.cluster import Cluster
from clipx.plan.communication import transfers
from clipx.plan.model import PhaseModel

CASES = (("b32", 2048, True), ("b16", 1024, True), ("l14", 512, False), ("l14", 256, True))
"""Models with their best micro-batches, and whether open_clip fits with its own."""
OPEN_CLIP = {"b32": "ViT-B-32", "b16": "ViT-B-16", "l14": "ViT-L-14"}
CAPTION_TOKENS = 16
RATE = 790e12
MEMORY_SPEED = {"H100": 0.9 * 3.35e12, "H200": 4.3e12}
PRODUCTS, MEMORY = 0.825, 0.87
ATTENTION = {"forward": 290e12, "backward": 230e12}
"""FLOP/s of whole tiles of 128 x 128 with heads of 64: assumed."""
LOSS = {512: 400e12, 640: 420e12, 768: 440e12}
"""FLOP/s of the loss kernels and their products by width: cycles counted in compiled code, not measured."""
LOSS_HOST_MS = {4096: 1.3, 32_768: 8.0}
"""The host's part of one call by G: launches counted, not timed on a GPU's machine."""
CACHE = (8, 256)
"""Micro-batches, and pairs of each, at which the plan for a GPU measures the gradient cache of L/14."""
LINK, HOST_US = 55e9, 19.0
WANTED_MFU = 0.45
MODES = ("floor", "eager", "compiled", "levers")
_KINDS = ("norms", "activations", "residuals", "casts", "sums", "copies", "others")
TERMS = ("products", "attention", *_KINDS, "fused", "loss", "optimizer", "pixels", "host", "communication")


@dataclass(frozen=True)
class Counted:
    """One side's step, counted."""

    traffic: Traffic
    num_weights: int
    pixel_bytes: float
    """That cross from host to device."""


def count_clipx(config: RunConfig, model: PhaseModel, batch_size: int) -> Counted:
    """Counts the towers of clipx over texts of mean length."""
    objective, image = model.objective, config.model.image
    objective.use_few_shapes(
        True
    )  # otherwise it reads lengths, which fake tensors do not have; adds tokens, 6% at most
    for blocks in objective.block_lists():
        checkpoint_blocks(blocks, fraction=config.activation_checkpointing)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    run = dry_run(
        lambda batch: objective.dry_run_roots(batch, autocast),
        image_size=image.image_size,
        context_length=CAPTION_TOKENS,
        device=torch.device("cpu"),
    )
    with _fake_weights(objective.model):
        traffic = counted(lambda: run(batch_size))
    return Counted(traffic, model.num_parameters, batch_size * 3.0 * image.image_size**2)


def count_open_clip(name: str, batch_size: int) -> Counted:
    """Counts open_clip's model over texts padded to its context length, with float32 pixels."""
    import open_clip

    with torch.device("meta"):
        model = open_clip.create_model(OPEN_CLIP[name], device="meta", output_dict=True).train()
    side, length = model.visual.image_size[0], model.context_length

    def step() -> None:
        texts = torch.zeros(batch_size, length, dtype=torch.int64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(torch.zeros(batch_size, 3, side, side), texts)
        roots = [outputs["image_features"], outputs["text_features"]]
        torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])

    with _fake_weights(model):
        traffic = counted(step)
    num_weights = sum(weight.numel() for weight in model.parameters())
    return Counted(traffic, num_weights, batch_size * 3 * 4.0 * side**2)


def count_clip_loss(size: int, width: int) -> Traffic:
    """Counts open_clip's loss of one process, forward and backward, under autocast as in its training."""
    from open_clip.loss import ClipLoss

    def step() -> None:
        image, text = (torch.zeros(size, width, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = ClipLoss()(image, text, torch.ones((), requires_grad=True))
        loss.backward()

    with FakeTensorMode():
        return counted(step)


def counted(step: Callable[[], None]) -> Traffic:
    """What a step takes."""
    with Traffic() as traffic:
        step()
        traffic.finish()
    return traffic


@contextmanager
def _fake_weights(model: torch.nn.Module) -> Iterator[None]:
    """Weights and gradients without values, in a context in which all tensors have none."""
    with FakeTensorMode():
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None
        yield


def terms_of(side: Counted, *, gpu: str, mode: str) -> dict[str, float]:
    """Milliseconds of a step on one GPU, by term, without the loss."""
    traffic, ideal = side.traffic, mode == "floor"
    memory = MEMORY_SPEED[gpu] * (1 if ideal else MEMORY)
    at_memory_speed = {"floor": (True, False), "levers": (True,)}.get(mode, ())  # short ones, long ones
    attention = sum(traffic.attention_bytes[short] for short in at_memory_speed) / memory
    for (direction, short), flops in traffic.tile_flops.items():
        attention += 0 if short in at_memory_speed else flops / ATTENTION[direction]
    terms = {
        "products": traffic.product_flops / RATE / (1 if ideal else PRODUCTS),
        "attention": attention,
        "optimizer": 40.0 * side.num_weights / memory,
        "pixels": 0.0 if mode == "levers" else side.pixel_bytes / LINK,
    }
    kinds = {"fused": traffic.fused_bytes} if mode in ("compiled", "levers") else dict(traffic.bytes)
    terms |= {kind: size / memory for kind, size in kinds.items()}
    launches = sum(traffic.launches[kind] for kind in ("products", "attention", "others"))
    device = sum(terms.values())
    terms["host"] = 0.0 if ideal else max(0.0, launches * HOST_US * 1e-6 - device)
    return {name: 1e3 * seconds for name, seconds in terms.items()}


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
    loss = 1e3 * model.objective.loss_cost(shape).flops / LOSS[shape.embed_dim]
    return loss, sum(max(0.0, spent[behind] - hidden[behind]) for behind in hidden)


def rows_of_model(name: str, batch_size: int, *, beside_open_clip: bool) -> Iterator[dict[str, object]]:
    """Rows of one model at one batch size, all modes, GPUs and numbers of them."""
    config = load_config([MODELS[name]], ["precision=bf16", "micro_batch_size=auto"])
    model = PhaseModel(config, phase_at(config, 0), caption_tokens=CAPTION_TOKENS)
    useful = batch_size * model.work.useful
    ours, theirs = count_clipx(config, model, batch_size), count_open_clip(name, batch_size)
    launches = sum(ours.traffic.launches[kind] for kind in ("products", "attention", "others"))
    for gpu in MEMORY_SPEED:
        peer_ms = sum(terms_of(theirs, gpu=gpu, mode="eager").values())
        for gpus in (1, 8):
            of_gpus = replace(config, global_batch_size=gpus * batch_size, micro_batch_size=batch_size)
            for mode in MODES:
                terms = terms_of(ours, gpu=gpu, mode=mode)
                towers_ms = sum(terms.values()) - terms["optimizer"] - terms["pixels"] - terms["host"]
                terms["loss"], terms["communication"] = exposed_ms(
                    of_gpus, model, gpu=gpu, gpus=gpus, towers_ms=towers_ms
                )
                host_ms = launches * HOST_US / 1e3
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
        device_ms = 1e3 * 8 * size**2 * width / LOSS[width]
        ours = max(device_ms, LOSS_HOST_MS[size])
        for gpu, speed in MEMORY_SPEED.items():
            memory_s = sum(traffic.bytes.values()) / speed / MEMORY
            theirs = 1e3 * (traffic.product_flops / RATE / PRODUCTS + memory_s)
            row = {"ms": ours, "host_ms": LOSS_HOST_MS[size], "times_open_clip": theirs / ours}
            yield _row(f"info_nce {width}", "triton", size, gpu, 1) | row
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
