"""A plan for a person: tables in plain text, as wide as a terminal, the same when piped."""

from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from clipx.distributed.parallelize import MEMORY_FRACTION
from clipx.plan.memory import CONTEXT_BYTES
from clipx.plan.run import Assumptions, PhasePlan, Plan, RunPlan
from clipx.printable import shown

_WIDTH = 100
_TEXTS = ("", "input", "needs", "calls")
"""Columns that hold words and no numbers."""
_HINTS = {
    "memory": "work is done again to save it: less activation_checkpointing, parallel.type=fsdp2, or more GPUs",
    "loader": "data.workers is too small for this pace: raise it, or data.decode=scaled",
    "communication": "GPUs wait for each other: fewer GPUs, a larger global_batch_size, or a faster network",
    "optimizer": "few pairs per GPU and step: fewer GPUs, parallel.type=fsdp2, or a larger global_batch_size",
    "arithmetic": "GPUs compute: a higher MFU, patch_drop, or more GPUs",
}
_TOO_LARGE = "it does not fit: activation_checkpointing=1, parallel.type=fsdp2, or more GPUs"


def print_plan(plan: Plan, assumptions: Assumptions, *, console: Console | None = None) -> None:
    """Writes the tables of the plan."""
    console = console or Console(width=_WIDTH, highlight=False, markup=False, emoji=False)
    asked = plan.asked
    phase, cluster, gpu = asked.heaviest, assumptions.cluster, assumptions.cluster.gpu
    console.print(
        f"{asked.world_size} x {gpu.name} of {gpu.memory_bytes / 2**30:g} GiB, "
        f"{_machines(cluster.num_nodes(asked.world_size))}; at an MFU of {cluster.mfu:.0%}, "
        f"{_rate(cluster.intra_node_bytes_per_s)} in a machine and "
        f"{_rate(cluster.inter_node_bytes_per_s)} per GPU between them (one way), captions of "
        f"{assumptions.caption_tokens:g} tokens. Not measured: a reckoning, without latencies; "
        "steps of a few ms take longer."
    )
    if len(asked.phases) > 1:
        _print(console, "Phases", _phases(asked), ("steps", "input", "micro-batch", "pairs/s", "hours"))
        console.print(f"The tables of one phase are those of the heaviest, {_input(phase)}.")
    _print(console, "Model", _model(phase), ("part", "of one pair"))
    _print(console, "Memory of a GPU", _memory(phase), ("part", "GB", ""))
    _print(console, "Communication of a step", _communication(phase), ("part", "calls", "sent per GPU", "ms"))
    _print(console, "A step", _step(phase), ("part", "ms", "share"))
    fastest = max(asked.phases, key=lambda part: part.loader.pictures_per_s)
    _print(console, "Data", _data(fastest, asked, assumptions), ("", "needs"))
    _print(console, "The run", _run(asked), ("", ""))
    price = "GPU hours" if asked.cost is None else "cost"
    columns = ("GPUs", "pairs each", "at once", "GB", "waits", "pairs/s", "hours", price, "useful", "limit")
    _print(console, "On other numbers of GPUs", map(_row, plan.others), columns)
    for number, reason in plan.left_out.items():
        console.print(f"{number} GPUs: {reason.partition('; ')[2] or reason}", soft_wrap=True)


def _print(console: Console, title: str, rows: Iterable[Sequence[str]], columns: Sequence[str]) -> None:
    first, *others = columns
    table = Table(
        Column(first, no_wrap=True),
        *(Column(name, justify="left" if name in _TEXTS else "right", no_wrap=name not in _TEXTS) for name in others),
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_header=any(columns),
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    if table.rows:
        console.print(table)


def _phases(run: RunPlan) -> Iterator[tuple[str, ...]]:
    for part in run.phases:
        steps = f"{part.first_step:,} to {part.phase.until:,}"
        geometry = part.memory.geometry
        hours = f"{part.seconds / 3600:,.1f}"
        yield steps, _input(part), f"{geometry.micro_batch_size:,}", f"{part.pairs_per_s:,.0f}", hours


def _input(part: PhasePlan) -> str:
    phase = part.phase
    dropped = f", {phase.patch_drop:.0%} of patches left out" if phase.patch_drop else ""
    locked = f", {' and '.join(sorted(phase.locked))} locked" if phase.locked else ""
    return f"{phase.image_size} pixels, {phase.context_length} tokens{dropped}{locked}"


def _model(part: PhasePlan) -> Iterator[tuple[str, str]]:
    work, total = part.work, sum(part.parameters.values())
    for name, number in part.parameters.items():
        if number > 1:
            yield name, f"{number / 1e6:,.1f} M parameters"
    trained = "" if part.num_trainable == total else f", {part.num_trainable / 1e6:,.1f} M trained"
    yield "all", f"{total / 1e6:,.1f} M parameters{trained}"
    yield "forward, image", f"{work.image_forward / 1e9:,.2f} GFLOP"
    yield f"forward, text of {work.text_tokens} tokens", f"{work.text_forward / 1e9:,.2f} GFLOP"
    yield "training", f"{work.useful / 1e9:,.2f} GFLOP"
    if work.recomputed:
        yield "again for activation checkpointing", f"{work.recomputed / 1e9:,.2f} GFLOP"
    yield "counted by torch in these towers", f"{part.counted_flops / 1e9:,.2f} GFLOP"
    if again := work.again(part.memory.geometry.num_micro_batches):
        yield "again for the gradient cache", f"{again / 1e9:,.2f} GFLOP"


def _memory(part: PhasePlan) -> Iterator[tuple[str, str, str]]:
    plan, geometry = part.memory, part.memory.geometry
    parts = plan.parts
    size = geometry.micro_batch_size
    rows = [
        ("weights", parts.weights, ""),
        ("gradients", parts.gradients, ""),
        ("optimizer", parts.optimizer, ""),
        ("average of the weights", parts.average, ""),
        ("held whole by FSDP2", parts.gathered, "weights and gradients in use"),
        ("texts of all GPUs", parts.texts, f"{geometry.global_batch_size:,} embeddings"),
        ("loss", parts.loss, "embeddings, their gradients, tiles"),
        ("activations", parts.activations, f"of {size:,} pairs, {parts.activations / size / 1e6:,.1f} MB each"),
    ]
    for name, num_bytes, note in rows:
        if num_bytes:
            yield name, f"{num_bytes / 1e9:,.2f}", note
    verdict = "fits" if plan.fits else _TOO_LARGE
    yield "all", f"{parts.total / 1e9:,.2f}", f"{verdict}; {plan.available / 1e9:,.1f} GB to be had:"
    reserve = f"{CONTEXT_BYTES / 1e9:.1f} GB for CUDA and NCCL (assumed)"
    yield "", "", f"{MEMORY_FRACTION:.0%} of what {reserve} and the weights leave"
    yield "micro-batch", f"{size:,}", f"of {geometry.rank_batch_size:,} pairs per GPU; {_cache(part)}"


def _cache(part: PhasePlan) -> str:
    number, work = part.memory.geometry.num_micro_batches, part.work
    if number == 1:
        return "one pass, no gradient cache"
    price = work.again(number) / (work.useful + work.recomputed)
    return f"gradient cache of {number}, {price:.0%} more arithmetic"


def _communication(part: PhasePlan) -> Iterator[tuple[str, str, str, str]]:
    for moved in part.pace.communication:
        size = f"{moved.sent_bytes / 1e6:,.1f} MB"
        yield moved.part, f"{moved.times:,} {moved.collective}", size, f"{1e3 * moved.seconds:,.2f}"


def _step(part: PhasePlan) -> Iterator[tuple[str, str, str]]:
    pace = part.pace
    rows = {
        "the model's arithmetic": pace.useful_s,
        "work done again": pace.recomputed_s,
        "similarities of the loss": pace.loss_s,
        "optimizer": pace.optimizer_s,
        "waiting for other GPUs": pace.exposed_s,
        "all": pace.step_s,
    }
    for name, seconds in rows.items():
        if seconds:
            yield name, f"{1e3 * seconds:,.1f}", f"{seconds / pace.step_s:.1%}"
    if pace.muon_flops:
        name = f"of the optimizer, {pace.muon_flops / 1e12:,.3g} TFLOP of Muon"
        yield name, f"{1e3 * pace.muon_s:,.1f}", f"{pace.muon_s / pace.step_s:.1%}"
    if pace.communication_s:
        yield "if all communication were hidden", f"{1e3 * pace.least_step_s:,.1f}", ""
        share = pace.communication_s / pace.most_step_s
        yield "if none were", f"{1e3 * pace.most_step_s:,.1f}", f"{share:.1%} of it"


def _data(part: PhasePlan, run: RunPlan, assumptions: Assumptions) -> Iterator[tuple[str, str]]:
    loader, saved = part.loader, run.checkpoint
    per_gpu = f"{1e3 * assumptions.cpu_s:.2f} ms of a core for a picture, a quarter to spare"
    yield "loading", f"{loader.cores_per_gpu:,.1f} cores per GPU ({per_gpu})"
    if loader.most_pictures_per_s is not None:
        yield "data.workers", f"can load {loader.most_pictures_per_s:,.0f} pictures/s of {loader.pictures_per_s:,.0f}"
    sizes = f"{assumptions.bytes_per_sample / 1e3:,.0f} kB for a sample"
    yield "storage", f"{loader.storage_bytes_per_s / 1e9:,.2f} GB/s for all machines ({sizes})"
    speed = f"at {_rate(assumptions.write_bytes_per_s)}, {saved.share:.1%} of the time if steps wait for it"
    yield "a checkpoint", f"{saved.num_bytes / 1e9:,.2f} GB in {saved.seconds:,.1f} s {speed}"


def _run(run: RunPlan) -> Iterator[tuple[str, str]]:
    steps, batch_size = run.phases[-1].phase.until, run.phases[-1].memory.geometry.global_batch_size
    pairs = steps * batch_size
    yield "steps", f"{steps:,} of {batch_size:,} pairs, {pairs / 1e9:,.3g} billion"
    pace = pairs / (86400 * run.days)
    yield "blocks", "compiled, which every start waits for" if run.heaviest.compiled else "not compiled"
    yield "pace", f"{pace:,.0f} pairs/s, {pace / run.world_size:,.0f} per GPU"
    yield "time", f"{_time(run.days)}; starts, evaluations and saves come on top"
    cost = "" if run.cost is None else f", {run.cost:,.0f} in the price's currency"
    yield "GPU hours", f"{run.gpu_hours:,.0f}{cost}"
    limit = run.heaviest.limit
    yield "limit", f"{limit}: {_HINTS[limit] if run.heaviest.memory.fits else _TOO_LARGE}"


def _row(run: RunPlan) -> tuple[str, ...]:
    part = run.heaviest
    memory, pace = part.memory, part.pace
    pairs = run.phases[-1].phase.until * memory.geometry.global_batch_size
    cache = f" x {memory.geometry.num_micro_batches}" if memory.geometry.num_micro_batches > 1 else ""
    return (
        f"{run.world_size:,}",
        f"{memory.geometry.rank_batch_size:,}",
        f"{memory.geometry.micro_batch_size:,}{cache}",
        f"{memory.parts.total / 1e9:,.1f}",
        f"{pace.exposed_s / pace.step_s:.1%}",
        f"{pairs / (86400 * run.days):,.0f}",
        f"{24 * run.days:,.{1 if run.days > 1 else 2}f}",
        f"{run.gpu_hours if run.cost is None else run.cost:,.0f}",
        f"{pace.efficiency:.0%}",
        "does not fit" if not memory.fits else part.limit,
    )


def _machines(number: int) -> str:
    return "1 machine" if number == 1 else f"{number:,} machines"


def _time(days: float) -> str:
    return f"{days:,.1f} days" if days >= 2 else f"{24 * days:,.1f} hours"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:,.4g} GB/s"
