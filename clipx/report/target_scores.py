"""The evaluations of a fit run: how its predictions are, with all inputs and without each, beside what is trivial."""

import math
from collections.abc import Mapping, Sequence

from clipx.config.fit_metrics import AVERAGE, complete, lower_is_better, whole_figure, without
from clipx.pages import Html, joined, line_chart, paragraph, table
from clipx.report.metric_names import is_headline, label, series, unit, written
from clipx.report.recorded import Evaluated

_MODALITIES = ("image", "text", "table")


def target_scores(name: str, results: Sequence[Evaluated]) -> Html:
    """Charts of every figure over the steps, those first that a person asks for first, and the last evaluation."""
    last = results[-1]
    figures = list(dict.fromkeys(metric for result in results for metric in result.scores if _is_whole(metric)))
    first = [figure for figure in figures if figure == "loss" or is_headline(figure)]
    charts = "".join(_chart(results, figure) for figure in first)
    further = "".join(_chart(results, figure) for figure in figures if figure not in first)
    away = [modality for modality in _MODALITIES if any(without(figure, modality) in last.scores for figure in figures)]
    less = ("all inputs", *(f"without {modality}" for modality in away)) if away else ()
    columns = ("figure", "trivial", "all rows", *less, "best", "at step")
    rows = [_row(results, figure, away) for figure in figures if figure in last.scores]
    note = (
        "Of rows that were held out. Trivial: predictions that look at no input (the most frequent class, the mean). "
        "All inputs, and without one of them: of the rows in which none is absent."
    )
    return joined(
        [
            Html(f'<div class="charts">{charts}</div>'),
            table(columns, rows, caption=f"{name} at step {last.step:,}"),
            paragraph(note, quiet=True),
            Html(f'<details><summary>All other figures of it</summary><div class="charts">{further}</div></details>')
            if further
            else "",
        ]
    )


def _is_whole(metric: str) -> bool:
    """Whether it is a figure of the weights over all rows."""
    return not metric.startswith(AVERAGE) and whole_figure(metric) == metric


def _chart(results: Sequence[Evaluated], figure: str) -> Html:
    """A figure with all inputs and without each, and that of the averaged weights."""
    lines = {"all rows": series(results, figure), "all inputs": series(results, complete(figure))}
    lines |= {f"without {modality}": series(results, without(figure, modality)) for modality in _MODALITIES}
    lines |= {"averaged weights": series(results, AVERAGE + figure)}
    there = {name: points for name, points in lines.items() if points}
    return line_chart(there, title=label(figure), x_label="step", y_label=unit(figure))


def _row(results: Sequence[Evaluated], figure: str, away: Sequence[str]) -> list[str]:
    last = results[-1]
    names = [figure, *([complete(figure)] if away else []), *(without(figure, modality) for modality in away)]
    best = min((result for result in results if figure in result.scores), key=lambda result: _badness(result, figure))
    return [
        label(figure),
        _cell(last.trivial, figure),
        *(_cell(last.scores, name) for name in names),
        written(figure, best.scores[figure]),
        f"{best.step:,}",
    ]


def _cell(scores: Mapping[str, float], name: str) -> str:
    return written(name, scores[name]) if name in scores else ""


def _badness(result: Evaluated, figure: str) -> float:
    value = result.scores[figure]
    if not math.isfinite(value):
        return math.inf
    return value if lower_is_better(figure) else -value
