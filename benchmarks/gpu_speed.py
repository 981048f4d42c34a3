"""Steps of the GPU plan that measure: whole steps, alone and beside open_clip, the loss, the gradient cache.

Rows bear the names under which `budget.py` predicts them: `what`, `mode` and `batch`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import grad_cache as grad_cache_benchmark
import loss as loss_benchmark
import step as step_benchmark
import torch
from budget import CACHE
from gpu_report import Report
from harness import Timing, alternate, ratio
from workload import Steps, make_batch, open_run

from clipx.distributed.hardware import peak_flops
from clipx.train.build import Run
from clipx.train.metrics.step_metrics import RankStats, StopOrSave

BATCH = {"b32": 2048, "b16": 1024, "l14": 512}
PEER_BATCH = {"b32": 2048, "b16": 1024, "l14": 256}
"""open_clip's L/14 needs 132 GB at 512 pairs."""
REHEARSED = {"b32": "b32", "b16": "demo", "l14": "demo"}
STEPS_PER_CALL = 4
CACHE_K, CACHE_M = CACHE


def b32(report: Report) -> None:
    alone(report, "b32", compiled=False)


def l14(report: Report) -> None:
    alone(report, "l14", compiled=False)


def b32_compiled(report: Report) -> None:
    alone(report, "b32", compiled=True)


def l14_compiled(report: Report) -> None:
    alone(report, "l14", compiled=True)


def b32_peer(report: Report) -> None:
    beside_open_clip(report, "b32")


def l14_peer(report: Report) -> None:
    beside_open_clip(report, "l14")


def b16_peer(report: Report) -> None:
    beside_open_clip(report, "b16")


def alone(report: Report, model: str, *, compiled: bool) -> None:
    """Steps of one model: a row with the first step's time, and one with the figures of those that follow."""
    batch_size, began = report.size(BATCH[model], 16), time.monotonic()
    mode = "compiled" if compiled else "eager"
    with _open(report, model, batch_size, compiled=compiled) as run:
        steps = Steps(run, [make_batch(run.config, batch_size, index=i) for i in range(2)])
        built = time.monotonic()
        steps()
        report.say(note="first step", mode=mode, built_s=built - began, s=time.monotonic() - built)
        timing = _timed(report, {"clipx": steps}, run)["clipx"]
        report.say(what=model, mode=mode, batch=BATCH[model], **_figures(run, steps, timing))
        try:
            with no_waits():
                steps()
        except RuntimeError as error:
            report.say(note="waits", mode=mode, error=str(error)[:150])
            report.failures.append(f"a step waits: {str(error)[:100]}")


def beside_open_clip(report: Report, model: str) -> None:
    """Both sides in turn, from the same weights, over the same pairs, eager; first whether they agree."""
    batch_size = report.size(PEER_BATCH[model], 16)
    with _open(report, model, batch_size, compiled=False) as run:
        batches = [make_batch(run.config, batch_size, index=i) for i in range(2)]
        theirs = step_benchmark.open_clip_model(run)
        try:
            difference = step_benchmark.compare(run, theirs, batches[0], most=16)
            report.say(note="losses at equal weights", difference=difference)
        except SystemExit as error:
            report.check(False, f"the two models differ: {error}")
        step_benchmark.as_open_clips_main_sets()
        ours = Steps(run, batches, num_steps=STEPS_PER_CALL)
        other = step_benchmark.OpenClipSteps(theirs, run, batches, num_steps=STEPS_PER_CALL, compiled=False)
        sides = {"clipx": ours, "open_clip": other}
        timings = alternate(sides, repetitions=report.size(3, 1), warmup=1, device=run.runtime.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = False
        faster = ratio(timings["open_clip"], timings["clipx"]).p50
        figures = _figures(run, ours, timings["clipx"])
        report.say(what=model, mode="in turn", batch=PEER_BATCH[model], times_open_clip=faster, **figures)
        ms = 1e3 * timings["open_clip"].p50 / STEPS_PER_CALL
        report.say(what=model, mode="open_clip", batch=PEER_BATCH[model], ms=ms, pairs_per_s=1e3 * batch_size / ms)


def loss(report: Report) -> None:
    """The loss beside open_clip's, in turn: time, host time, memory, and errors against float64."""
    device = torch.device("cuda", 0)
    for size, width, captions in ((32_768, 512, 1), (4096, 512, 1), (32_768, 768, 1), (32_768, 512, 4)):
        case = loss_benchmark.Case(
            "info_nce", report.size(size, 1024), 1, width, torch.bfloat16, with_peer=captions == 1, captions=captions
        )
        rows = loss_benchmark.measure(case, device, report.size(7, 1))
        host_ms = _host_times(case, device)
        for row in rows:
            side = str(row["implementation"])
            report.say(
                what=f"info_nce {width}" if captions == 1 else f"info_nce {width}, {captions} captions",
                mode=side,
                batch=size,
                ms=row.get("p50_ms"),
                host_ms=host_ms[side],
                mb=row["peak_mb"],
                times_open_clip=row.get("times_faster"),
                errors=[f"{row[name]:.1e}" for name in row if name.endswith("_error")],
            )


def cache(report: Report) -> None:
    """The gradient cache over k micro-batches of L/14, beside as many plain steps."""
    micro_batch = report.size(CACHE_M, 8)
    size = CACHE_K * micro_batch
    arguments = argparse.Namespace(micro_batch=micro_batch, repetitions=1, model="l14", device="cuda")
    with _open(report, "l14", size, compiled=False, micro_batch_size=micro_batch) as run:
        row = grad_cache_benchmark.measure(run, make_batch(run.config, size, index=0), CACHE_K, arguments)
    figures = {name: row[name] for name in ("cached_ms_per_pair", "plain_ms_per_pair", "cached_mb", "plain_mb")}
    report.say(
        what="l14 cache",
        mode=f"k={CACHE_K}",
        batch=CACHE_K * CACHE_M,
        ratio=row["ratio_p50"],
        pairs_per_s=row["pairs_per_s"],
        **figures,
    )


def blocks(report: Report) -> None:
    """Other shapes of the loss kernels' programs."""
    size = report.size(32_768, 1024)
    for row in loss_benchmark.time_blocks(torch.device("cuda", 0), report.size(5, 1), size=size):
        report.say(what="blocks", mode=f"{row['loss']} {row['blocks']}", ms=row["p50_ms"])


def profile(report: Report) -> None:
    """Where the time of a step of B/32 goes, kernel by kernel, as a table in the log and a file."""
    batch_size = report.size(BATCH["b32"], 16)
    with _open(report, "b32", batch_size, compiled=False) as run:
        steps = Steps(run, [make_batch(run.config, batch_size, index=0)])
        steps()
        steps()
        activity = torch.profiler.ProfilerActivity
        # a CUDA that computes nothing has no profiler
        with torch.profiler.profile(activities=[activity.CPU if report.rehearse else activity.CUDA]) as recorded:
            steps()
    order = "self_cpu_time_total" if report.rehearse else "self_device_time_total"
    table = recorded.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
    (report.folder / "gpu_profile.txt").write_text(table)
    print(table)


@contextmanager
def no_waits() -> Iterator[None]:
    """Whatever makes the host wait for the device raises, except for events."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def _open(report: Report, model: str, batch_size: int, *, compiled: bool, **changes: object) -> Iterator[Run]:
    name = REHEARSED[model] if report.rehearse else model
    with open_run(name, batch_size, precision="bf16", compile=compiled, **changes) as run:
        yield run


def _host_times(case: loss_benchmark.Case, device: torch.device) -> dict[str, float]:
    pairs, sides = loss_benchmark.draw(case, device), loss_benchmark.contenders(case, device)
    return {name: _host_ms(partial(loss_benchmark.value_and_gradients, side, pairs)) for name, side in sides.items()}


def _timed(report: Report, sides: dict[str, Steps], run: Run) -> dict[str, Timing]:
    for steps in sides.values():
        steps.num_steps = STEPS_PER_CALL
    torch.cuda.reset_peak_memory_stats()
    return alternate(sides, repetitions=report.size(3, 1), warmup=1, device=run.runtime.device)


def _figures(run: Run, steps: Steps, timing: Timing) -> dict[str, object]:
    """Of a step: its time, speed and share of the peak, its sections, the host's part, and all memory at the peak."""
    seconds = timing.p50 / STEPS_PER_CALL
    pairs = len(steps.batches[0].sample_id_I)
    flops = median(outcome.counts["model_flops"] for outcome in steps.outcomes)
    peak = peak_flops(run.runtime.device) or 989.4e12  # of an H200 that has another name
    sections = {
        f"{name}_ms": 1e3 * median(outcome.seconds[name] for outcome in steps.outcomes[-STEPS_PER_CALL:])
        for name in ("forward", "loss", "backward", "optimizer")
    }
    batch = steps.batches[0]
    requests, stats = StopOrSave(), RankStats()
    host_ms = _host_ms(lambda: run.stepper(batch, step=steps.taken, requests=requests, stats=stats))
    return {
        "ms": 1e3 * seconds,
        "spread": (timing.p80 - timing.p20) / timing.p50,
        "pairs_per_s": pairs / seconds,
        "mfu": flops / seconds / peak,
        "host_ms": host_ms,
        "mb": torch.cuda.max_memory_allocated() / 1e6,
        **sections,
    }


def _host_ms(launch: Callable[[], object], *, count: int = 3) -> float:
    """The median of the host's times for a call that finds the device idle."""
    times = []
    for _ in range(count):
        torch.cuda.synchronize()
        began = time.perf_counter()
        launch()
        times.append(1e3 * (time.perf_counter() - began))
    torch.cuda.synchronize()
    return median(times)
