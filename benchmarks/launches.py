"""What a step asks of the device: launches, products, copies, memsets, waits and the host's time, by part of the step.

    .venv/bin/python benchmarks/launches.py --model demo b32 --batch 64 [--compile] [--micro-batch 16]

The rule is: beyond what the architecture needs, a step launches at most 1.3 kernels per product and layer,

    beyond = (launches made - launches needed) / (products + layers) <= 1.3.

`launches made` are all kernels, those of products too. `products` are the matrix products of the step, forward and
backward, and `layers` the transformer blocks of both towers. `launches needed` is what torch's operations, one kernel
each, take for the arithmetic alone (`needed`), by layer:

| layer | forward | backward |
|---|---|---|
| linear | 1 | 1 for the weight, 1 for a bias, 1 for the input (none for pixels) |
| norm | 1 | 2: input; gain and bias |
| activation, residual sum, unit length | 1 | 1 |
| attention | 1 | 2: products of gradient and output; queries, keys and values |
| table of tokens, of positions | 1 | 1 |
| pixels: cut into patches, normalised | 2 | 0 |
| loss: sums of rows and columns, value, two gradients | 2 | 2 |

The optimizer takes 4 for each group of weights: the norm of the gradients, their scaling, the count of steps and the
update, each in one multi-tensor kernel. The cache over k micro-batches takes 2k - 1 forward and k backward passes. Not
needed in this sense are casts, copies, memsets, fills, sums of a bias that a product could do, and all figures.

Counted are the calls that torch's profiler sees. Under a preloaded library that stands in for CUDA and exports
counters (`fk_launches` and others beside it) these are read instead. Waits: of the host for a stream, the device or an
event; one event a step is the trainer's, which reads the step before.
"""

import argparse
import ctypes
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from statistics import median
from unittest.mock import patch

import torch
from harness import device_argument, prepare, print_table, write_rows
from torch import nn
from workload import MODELS, Steps, make_batch, open_run

from clipx.train.build import Run
from clipx.train.metrics.step_metrics import Clock, sections

COUNTED = ("launches", "products", "memsets", "waits", "pinned", "pageable")
PARTS = ("forward", "loss", "backward", "optimizer")
LIMIT = 1.3
_FAKE = {
    "launches": ("fk_launches", "fk_gemms"),
    "products": ("fk_gemms",),
    "memsets": ("fk_memset",),
    "waits": ("fk_ssync", "fk_dsync", "fk_esync"),
    "pinned": ("fk_h2d_pinned", "fk_d2h_pinned"),
    "pageable": ("fk_h2d_pageable", "fk_d2h_pageable"),
}
_CALLS = {
    "cudaLaunchKernel": "launches",
    "cudaLaunchKernelExC": "launches",
    "cudaLaunchCooperativeKernel": "launches",
    "cuLaunchKernel": "launches",
    "cuLaunchKernelEx": "launches",
    "aten::mm": "products",
    "aten::addmm": "products",
    "aten::bmm": "products",
    "aten::baddbmm": "products",
    "aten::_scaled_mm": "products",
    "cudaMemsetAsync": "memsets",
    "cudaStreamSynchronize": "waits",
    "cudaDeviceSynchronize": "waits",
    "cudaEventSynchronize": "waits",
}
Parts = Mapping[str, Mapping[str, float]]
"""By part of a step, what was counted in it; `step` is all of it."""


def count_step(steps: Steps) -> Parts:
    """What one step asks for, by its part; it has run before."""
    library = stand_in()
    return _count_by_profiler(steps) if library is None else _count_by_library(steps, library)


def stand_in() -> ctypes.CDLL | None:
    """The preloaded library that stands in for CUDA and counts, if there is one."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "fk_launches") else None


def needed(run: Run, batch_size: int) -> dict[str, int]:
    """Launches that the arithmetic of a step takes at least, by part; see the module's table."""
    model, k = run.encoder.model, ceil(batch_size / run.stepper.micro_batch_size)
    forward, backward = _of_towers(model)
    return {
        "forward": forward * (2 * k - 1),
        "backward": backward * k + 2,
        "loss": 2,
        "optimizer": 4 * len(run.stepper.optimizer.param_groups),
    }


def _of_towers(model: nn.Module) -> tuple[int, int]:
    """One forward and one backward pass; weights that do not train have no gradient."""
    forward, backward = 2 + 2, 2  # pixels, and unit length of both embeddings
    for module in model.modules():
        own = {name: weight.requires_grad for name, weight in module.named_parameters(recurse=False)}
        if isinstance(module, nn.Linear | nn.Conv2d):
            forward += 1
            backward += sum(own.values()) + (not isinstance(module, nn.Conv2d))
        elif isinstance(module, nn.LayerNorm):
            forward += 1
            backward += 1 + any(own.values())
        elif isinstance(module, nn.Embedding):
            forward += 1
            backward += any(own.values())
    num_blocks = len(model.blocks())  # type: ignore[operator]
    return forward + 4 * num_blocks, backward + 5 * num_blocks  # activation, attention, two residual sums


def _count_by_library(steps: Steps, library: ctypes.CDLL) -> Parts:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def read() -> Counter[str]:
        return Counter(
            {kind: sum(ctypes.c_long.in_dll(library, name).value for name in names) for kind, names in _FAKE.items()}
        )

    measure = Clock.measure

    @contextmanager
    def counting(clock: Clock, section: str) -> Iterator[None]:
        with measure(clock, section):
            before = read()
            yield
            counts[section].update(_minus(read(), before))

    with patch.object(Clock, "measure", counting):
        before = read()
        steps()
        counts["step"] = _minus(read(), before)
    return _parts(counts)


def _count_by_profiler(steps: Steps) -> Parts:
    measure = Clock.measure

    @contextmanager
    def marking(clock: Clock, section: str) -> Iterator[None]:
        with measure(clock, section), torch.profiler.record_function(f"part {section}"):
            yield

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with patch.object(Clock, "measure", marking), torch.profiler.profile(activities=activities) as recorded:
        steps()
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    events = recorded.events() or []
    marks = [
        (event.name.removeprefix("part "), event.time_range)
        for event in events
        if event.name.startswith("part ") and event.device_type == torch.autograd.DeviceType.CPU
    ]
    for event in events:
        if event.name.startswith("Memcpy "):  # on the device's time line: counted for the whole step
            if "HtoD" in event.name or "DtoH" in event.name:
                counts["step"]["pageable" if "Pageable" in event.name else "pinned"] += 1
        elif (kind := _CALLS.get(event.name)) is not None:
            counts["step"][kind] += 1
            for section, span in marks:
                counts[section][kind] += span.start <= event.time_range.start <= span.end
    return _parts(counts)


def _parts(counts: Mapping[str, Counter[str]]) -> Parts:
    """Parts as the trainer's clock tells them apart; what is in none of them is `figures`."""
    whole = counts["step"]
    by_kind = {
        kind: sections(defaultdict(float, {section: float(count[kind]) for section, count in counts.items()}))
        for kind in COUNTED
    }
    parts = {part: {kind: by_kind[kind][part] for kind in COUNTED} for part in PARTS}
    rest = {kind: whole[kind] - sum(parts[part][kind] for part in PARTS) for kind in COUNTED}
    return {**parts, "figures": rest, "step": {kind: float(whole[kind]) for kind in COUNTED}}


def _minus(after: Counter[str], before: Counter[str]) -> Counter[str]:
    return Counter({kind: after[kind] - before[kind] for kind in after})


def measure(run: Run, batch_size: int, *, repetitions: int) -> list[dict[str, object]]:
    """A row for each part of a step, and one for the whole step with the rule's figure."""
    steps = Steps(run, [make_batch(run.config, batch_size, index=i) for i in range(2)])
    for _ in range(3):
        steps()
    counts, need = count_step(steps), needed(run, batch_size)
    host = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        began = time.perf_counter()
        steps()
        host.append(1e3 * (time.perf_counter() - began))
    rows: list[dict[str, object]] = [
        {"part": part, "needed": need.get(part, 0), **counts[part]} for part in (*PARTS, "figures")
    ]
    whole, num_layers = counts["step"], len(run.encoder.model.blocks())
    beyond = (whole["launches"] - sum(need.values())) / max(1.0, whole["products"] + num_layers)
    total = {"part": "step", "needed": sum(need.values()), **whole, "layers": num_layers, "beyond": beyond}
    return [*rows, total | {"host_ms": median(host), "host_ms_least": min(host)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device_argument(parser)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["demo"])
    parser.add_argument("--batch", type=int, default=64, help="pairs per step: they do not change what is launched")
    parser.add_argument("--micro-batch", type=int, help="pairs per forward pass; default: the batch")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    parser.set_defaults(device="cuda")
    arguments = parser.parse_args()
    prepare(arguments)
    if stand_in() is not None:  # it has no cuDNN
        torch.backends.cuda.enable_cudnn_sdp(False)
    rows = []
    for model in arguments.model:
        changes = {"compile": arguments.compile, "micro_batch_size": arguments.micro_batch or arguments.batch}
        with open_run(model, arguments.batch, precision=arguments.precision, **changes) as run:
            measured = measure(run, arguments.batch, repetitions=arguments.repetitions)
        setting = {"model": model, "batch": arguments.batch, "precision": arguments.precision, **changes}
        if stand_in() is not None:
            setting["hardware"] = "a library that stands in for CUDA"
        rows += [setting | row for row in measured]
        print_table(measured, ["part", "needed", *COUNTED, "layers", "beyond", "host_ms", "host_ms_least"])
        beyond = float(str(measured[-1]["beyond"]))
        print(f"{model}: {beyond:.2f} launches per product and layer beyond the needed; limit {LIMIT}\n", flush=True)
    write_rows("launches", rows, arguments.out)


if __name__ == "__main__":
    main()
