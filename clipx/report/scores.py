"""Evaluations over time: charts, and the last and the best of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipx.config.fit_metrics import AVERAGE, lower_is_better
from clipx.pages import Extras, Html, joined, line_chart, paragraph, table
from clipx.report.intervals import Interval, wilson
from clipx.report.metric_names import MAIN, has_targets, label, series, unit, written
from clipx.report.recorded import Evaluated, Recorded
from clipx.report.target_scores import target_scores

_COUNTED_IN_PICTURES = ("acc1", "acc5", "image_to_text_recall@")
_COUNTED_IN_TEXTS = ("text_to_image_recall@",)


@dataclass(frozen=True)
class SetSize:
    """Of how many trials the shares of an evaluation are."""

    pictures: int
    texts: int = 0


def interval(metric: str, result: Evaluated, size: SetSize | None) -> Interval | None:
    """The 95% interval of a metric: as it was written with it, else that of a share of pictures or texts.

    None for other metrics, and where the size of the set is unknown, too.
    """
    if metric in result.intervals:
        return Interval(*result.intervals[metric])
    share = result.scores.get(metric, math.nan)
    if size is None or not 0 <= share <= 1:
        return None
    plain = metric.removeprefix(AVERAGE)
    count = size.texts if plain.startswith(_COUNTED_IN_TEXTS) else 0
    if plain.startswith(_COUNTED_IN_PICTURES):
        count = size.pictures
    return wilson(share, count) if count > 0 else None


def scores(run: Recorded, sizes: Mapping[str, SetSize]) -> Html:
    """The charts of all evaluations with the last and best scores.

    Args:
        sizes: of the sets, by name of the evaluation, as far as they are known.
    """
    if not run.evaluations:
        return paragraph("No evaluation has been written yet.")
    of_targets = {name: results for name, results in run.evaluations.items() if has_targets(results)}
    others = {name: results for name, results in run.evaluations.items() if name not in of_targets}
    return joined([*(target_scores(name, results) for name, results in of_targets.items()), _of_sets(others, sizes)])


def _of_sets(evaluations: Mapping[str, Sequence[Evaluated]], sizes: Mapping[str, SetSize]) -> Html:
    """The charts and the table of evaluations whose metrics are shares, or the loss."""
    if not evaluations:
        return joined([])
    charts = [_chart(name, results, sizes.get(name)) for name, results in evaluations.items()]
    rows = [row for name, results in evaluations.items() for row in _rows(name, results, sizes.get(name))]
    columns = ("evaluation", "metric", "last", "95% interval", "at step", "best", "at step")
    known = any(row[3] for row in rows)
    note = (
        "Intervals: how the score would vary with other pictures of the same kind, by resampling or, where a run did "
        "not write them, Wilson's from the number of pictures or texts."
    )
    return joined(
        [
            Html(f'<div class="charts">{"".join(charts)}</div>'),
            table(columns, rows, caption="The last and the best score of each metric"),
            paragraph(note, quiet=True) if known else "",
        ]
    )


def _chart(name: str, results: Sequence[Evaluated], size: SetSize | None) -> Html:
    metrics = list(dict.fromkeys(metric for result in results for metric in result.scores))
    bands: dict[str, list[tuple[float, float, float]]] = {}
    for metric in metrics[:1] + [metric for metric in metrics[1:] if metric in MAIN]:
        for result in results:
            found = interval(metric, result, size)
            if found is not None:
                bands.setdefault(label(metric), []).append((result.step, 100 * found.low, 100 * found.high))
    lines = {label(metric): series(results, metric) for metric in metrics}
    y_label = unit(metrics[0]) if metrics else "%"
    return line_chart(lines, title=name, x_label="step", y_label=y_label, extras=Extras(bands=bands))


def _rows(name: str, results: Sequence[Evaluated], size: SetSize | None) -> list[list[object]]:
    rows: list[list[object]] = []
    for metric in dict.fromkeys(metric for result in results for metric in result.scores):
        measured = [result for result in results if metric in result.scores]
        last = measured[-1]
        best = max(measured, key=lambda result: _goodness(metric, result.scores[metric]))
        found = interval(metric, last, size)
        ends = "" if found is None else f"{100 * found.low:.1f} to {100 * found.high:.1f}"
        value, most = written(metric, last.scores[metric]), written(metric, best.scores[metric])
        rows.append([name if not rows else "", label(metric), value, ends, f"{last.step:,}", most, f"{best.step:,}"])
    return rows


def _goodness(metric: str, value: float) -> float:
    if not math.isfinite(value):
        return -math.inf
    return -value if lower_is_better(metric) else value
