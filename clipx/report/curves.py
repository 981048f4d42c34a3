"""Charts of what a run's rows hold."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from clipx.config.fit import FitConfig
from clipx.config.schema import RunConfig
from clipx.pages import Extras, Html, joined, line_chart, paragraph
from clipx.report.metric_names import has_targets, series
from clipx.report.recorded import Recorded, finite

Points = list[tuple[float, float]]

_COMPUTED = ("forward_s", "loss_s", "backward_s", "optimizer_s", "communication_s")
SMOOTHED_FROM = 60  # rows; below, every row can be seen by itself
_LOSS = "loss_"  # before the name of a term
_CONTRASTIVE = "loss_contrastive"
_WINDOWS = 40  # in the length of a run
_MOST_MEDIANS = 400  # more than pixels show
_LOG_RATIO = 30  # between the largest and the smallest value, from which a logarithmic axis shows more

_KNOWN = {
    *("step", "samples_seen", "loss", "lr", "logit_scale", "logit_bias", "grad_norm", "samples_per_s", "elapsed_s"),
    *("data_wait_s", "pause_s", "checkpoint_s", "image_cosine", "text_cosine", "memory_gib", "peak_memory_gib"),
    *("epoch", "mfu", "data_wait_rank", "slowest_rank", *_COMPUTED),
}


def curves(run: Recorded) -> Html:
    """The charts of one run, those first that a person asks for first."""
    if not run.rows:
        return paragraph("No figures yet: the run has not finished the steps of its first row.")
    marks = restarts(run)
    held_out, comparable = held_out_losses(run), comparable_loss(run)
    beside, apart = ({}, comparable | held_out) if comparable else (held_out, {})
    charts = [
        _chart(_with_raw(run.points("loss")) | beside, "Loss", "loss", marks, faint="each row"),
        _chart(apart, "Contrastive loss of one caption", "loss", marks),
        _chart(of_targets(run), "Loss of each target", "loss", marks),
        _chart({"": run.points("lr")}, "Learning rate", "lr", marks, log_y=False),
        _chart({"": run.points("logit_scale")}, "Logit scale", "multiplier of the similarities", marks, log_y=False),
        _chart({"": run.points("logit_bias")}, "Logit bias", "bias", marks, log_y=False),
        _chart({"": run.points("grad_norm")}, "Gradient norm", "before clipping", marks),
        _chart({"": run.points("samples_per_s")}, "Speed", f"{run.samples} per second", marks, log_y=False),
        _chart(time_split(run), "Where the time goes", "% of the time since the row before", marks, log_y=False),
        _chart(
            {"pictures": run.points("image_cosine"), "texts": run.points("text_cosine")},
            "How alike embeddings are",
            "mean cosine of two",
            marks,
            log_y=False,
        ),
        _chart({"": _scaled(run.points("mfu"), 100)}, "Use of the GPU", "% of its peak (MFU)", marks, log_y=False),
        _chart(
            {"now": run.points("memory_gib"), "peak": run.points("peak_memory_gib")},
            "Memory",
            "GiB",
            marks,
            log_y=False,
        ),
    ]
    told = "Dashed lines are restarts and rollbacks." if marks else ""
    further = _further(run, marks)
    return joined(
        [
            Html('<div class="charts">'),
            *charts,
            Html("</div>"),
            paragraph(told, quiet=True) if told else "",
            Html(f'<details><summary>All other figures</summary><div class="charts">{further}</div></details>')
            if further
            else "",
        ]
    )


def of_targets(run: Recorded) -> dict[str, Points]:
    """The losses of a fit run's targets, where there are several; smoothed as the whole."""
    if not isinstance(run.config, FitConfig) or len(run.config.targets) == 1:
        return {}
    found = {target: run.points(_LOSS + target) for target in run.config.targets}
    return {target: smoothed(points)[0] or points for target, points in found.items()}


def held_out_losses(run: Recorded) -> dict[str, Points]:
    """Losses of a pretraining run's evaluations; a fit run's, and averaged weights', stand with the scores."""
    evaluations = {name: results for name, results in run.evaluations.items() if not has_targets(results)}
    found = {f"{name}, held out": series(results, "loss") for name, results in evaluations.items()}
    return {title: points for title, points in found.items() if points}


def comparable_loss(run: Recorded) -> dict[str, Points]:
    """What held-out losses compare with, smoothed, where that is not `loss` as it is; else, or without such, nothing.

    It is without further terms. With K captions per image each has K positives among K times as many texts: were they
    equal, InfoNCE would be log K above that of one caption, and the sigmoid loss K times as large.
    """
    if not held_out_losses(run) or not isinstance(run.config, RunConfig):
        return {}
    alone, captions = run.points(_CONTRASTIVE), run.config.data.captions_per_image
    if not alone and captions == 1:
        return {}
    points = alone or run.points("loss")
    points = smoothed(points)[0] or points
    if captions == 1:
        return {"training": points}
    if run.config.loss.type == "sigmoid":
        return {f"training, divided by {captions}": _scaled(points, 1 / captions)}
    return {f"training, less log {captions}": [(x, y - math.log(captions)) for x, y in points]}


def restarts(run: Recorded) -> list[tuple[float, str]]:
    """The steps at which the run went on after a stop, or went back."""
    marks = [(float(row["step"]), f"started again at step {row['step']}") for row in run.starts if row["step"] > 0]
    for row in run.rollbacks:
        if (step := finite(row.get("step"))) is not None:
            marks.append((step, f"loss spike at step {step:.0f}: back to step {row.get('back_to')}"))
    return marks


def smoothed(points: Sequence[tuple[float, float]]) -> tuple[Points, int]:
    """The running median, and over how many rows; nothing where the rows are few."""
    if len(points) < SMOOTHED_FROM:
        return [], 1
    reach = max(1, len(points) // _WINDOWS // 2)
    middle = []
    for i in sorted({*range(0, len(points), max(1, len(points) // _MOST_MEDIANS)), len(points) - 1}):
        near = [y for _, y in points[max(0, i - reach) : i + reach + 1] if math.isfinite(y)]
        if near:
            middle.append((points[i][0], statistics.median(near)))
    return middle, 2 * reach + 1


def time_split(run: Recorded) -> Mapping[str, Points]:
    """Shares of the time of each row, in percent: waiting for data, computing, saving and evaluating, the rest."""
    split: dict[str, Points] = {"computing": [], "waiting for data": [], "saving and evaluating": [], "rest": []}
    for row in run.rows:
        elapsed = finite(row.get("elapsed_s"))
        if not elapsed:
            continue
        computed = sum(finite(row.get(name)) or 0.0 for name in _COMPUTED)
        waited, paused = (finite(row.get(name)) or 0.0 for name in ("data_wait_s", "pause_s"))
        rest = max(0.0, elapsed - computed - waited - paused)
        for name, seconds in zip(split, (computed, waited, paused, rest), strict=True):
            split[name].append((float(row["step"]), 100 * seconds / elapsed))
    return split


def wide(values: Iterable[float]) -> bool:
    """Whether values are positive and so far apart that a logarithmic axis shows more of them."""
    finite_values = [value for value in values if math.isfinite(value)]
    return bool(finite_values) and min(finite_values) > 0 and max(finite_values) > _LOG_RATIO * min(finite_values)


def _with_raw(points: Points) -> dict[str, Points]:
    middle, _ = smoothed(points)
    return {"running median": middle, "each row": points} if middle else {"loss": points}


def _scaled(points: Points, factor: float) -> Points:
    return [(x, factor * y) for x, y in points]


def _chart(
    series: Mapping[str, Points],
    title: str,
    y_label: str,
    marks: Sequence[tuple[float, str]],
    *,
    log_y: bool | None = None,
    faint: str = "",
) -> Html:
    """A chart over the steps; nothing where no series has a point."""
    there = {name: points for name, points in series.items() if points}
    if not there:
        return Html("")
    if log_y is None:
        log_y = wide(y for points in there.values() for _, y in points)
    extras = Extras(marks=marks, faint=frozenset({faint} if faint else ()))
    return line_chart(there, title=title, x_label="step", y_label=y_label, log_y=log_y, extras=extras)


def _further(run: Recorded, marks: Sequence[tuple[float, str]]) -> str:
    """Charts of what an objective, a mixture or a later version writes besides, where it ever changes."""
    shown = _KNOWN | {_LOSS + target for target in of_targets(run)}
    names = dict.fromkeys(name for row in run.rows for name in row if name not in shown)
    charts = []
    for name in names:
        points = run.points(name)
        if len({y for _, y in points if math.isfinite(y)}) > 1:
            charts.append(_chart({"": points}, name, "", marks))
    return "".join(charts)
