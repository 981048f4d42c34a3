"""Metrics as a person reads them: names, units, digits, and the one that stands for an evaluation."""

import math
from collections.abc import Mapping, Sequence

from clipx.config.fit_metrics import AVERAGE, HEADLINES, whole_figure
from clipx.report.recorded import Evaluated

MAIN = ("acc1", "mean_average_precision", "image_to_text_recall@1", "text_to_image_recall@1")
"""Metrics that stand for an evaluation, those first that are taken first."""
_SHARES_OF_TARGETS = ("accuracy", "macro_f1")


def has_targets(results: Sequence[Evaluated]) -> bool:
    """Whether the evaluation is a fit run's, of its targets."""
    return any("/" in metric for result in results for metric in result.scores)


def is_less(metric: str) -> bool:
    """Whether it is a figure of a fit run of the rows alone that have all inputs, with them or without one."""
    return whole_figure(metric) != metric and (metric.removeprefix(AVERAGE).startswith("loss") or "/" in metric)


def is_headline(metric: str) -> bool:
    """Whether it is the figure of a target that a person is shown first, with all inputs."""
    target, _, figure = metric.rpartition("/")
    return bool(target) and figure in HEADLINES.values() and not metric.startswith(AVERAGE)


def main_metric(scores: Mapping[str, float]) -> str | None:
    """The metric that stands for an evaluation: of the weights that an export takes, so of their average if there."""
    names = [name for name in MAIN if name in scores] or [name for name in scores if is_headline(name)] or list(scores)
    if not names:
        return None
    return AVERAGE + names[0] if AVERAGE + names[0] in scores else names[0]


def is_share(metric: str) -> bool:
    """Whether a metric is a share, which is written in percent; those of a target are of several kinds."""
    _, _, figure = metric.removeprefix(AVERAGE).rpartition("/")
    plain = whole_figure(figure)
    return plain in _SHARES_OF_TARGETS if "/" in metric or plain == "loss" else True


def written(metric: str, value: float) -> str:
    """A value of a metric with the digits that matter."""
    if is_share(metric):
        return percent(value)
    return f"{value:.4g}" if math.isfinite(value) else "none"


def unit(metric: str) -> str:
    """What stands at the axis of a metric's values."""
    return "%" if is_share(metric) else label(metric)


def percent(share: float) -> str:
    """A share with the digits that matter."""
    return f"{100 * share:.2f}%" if math.isfinite(share) else "none"


def series(results: Sequence[Evaluated], metric: str) -> list[tuple[float, float]]:
    """One metric over the steps, shares in percent."""
    factor = 100 if is_share(metric) else 1
    return [(float(result.step), factor * result.scores[metric]) for result in results if metric in result.scores]


def label(metric: str) -> str:
    """The metric as a person reads it."""
    if metric.startswith(AVERAGE):
        return f"{label(metric.removeprefix(AVERAGE))}, averaged weights"
    target, slash, figure = metric.rpartition("/")
    whole = whole_figure(figure)
    plain = whole.replace("_recall@", " R@").replace("_", " ")
    rows = figure.removeprefix(whole).replace("_complete", ", complete rows").replace("_without_", ", without ")
    return f"{target}{' ' if slash else ''}{plain}{rows}"
