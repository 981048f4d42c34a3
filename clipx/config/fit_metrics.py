"""The figures of a fit run's evaluations, by name: `loss`, and for each target `TARGET/FIGURE`.

Where a run has several modalities, there are further figures of the rows that have all of them, so that they can be
compared: `..._complete`, with all inputs, and `..._without_MODALITY`, with that modality taken away. Imports no torch,
so that a wrong `stop.metric` is said at once.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from clipx.config.fit_inputs import HeadKind
from clipx.errors import InputError, some_names

METRICS: Mapping[HeadKind, tuple[str, ...]] = {
    "class": ("accuracy", "macro_f1", "auroc", "calibration_error", "loss"),
    "number": ("mae", "r2", "loss"),
    "labels": ("macro_f1", "auroc", "calibration_error", "loss"),
}
"""The figures of a target by its kind; `clipx.evaluate.supervised_metrics` defines them."""

HEADLINES: Mapping[HeadKind, str] = {"class": "accuracy", "number": "r2", "labels": "macro_f1"}
"""The figure of a target that a person is shown first, by its kind."""

LOWER_IS_BETTER = frozenset({"loss", "mae", "calibration_error"})
"""Figures that are better the lower they are; all others the higher."""

EVALUATION = "val"
"""Name of a fit run's evaluation, on its held-out rows."""

AVERAGE = "ema_"
"""Before the name of a figure: that of the average of the weights, where a run keeps one."""

_WITHOUT = "_without_"
_COMPLETE = "_complete"


def complete(figure: str) -> str:
    """The name of a figure of the rows that have all modalities."""
    return figure + _COMPLETE


def without(figure: str, modality: str) -> str:
    """The name of a figure of the rows that have all modalities, where one is taken away."""
    return f"{figure}{_WITHOUT}{modality}"


def figure_name(target: str, metric: str) -> str:
    """The name of a target's figure, over all rows."""
    return f"{target}/{metric}"


def whole_figure(name: str) -> str:
    """The figure of all rows that one of the rows with all modalities belongs to; of another figure its own name."""
    target, slash, figure = name.rpartition("/")
    return target + slash + figure.partition(_WITHOUT)[0].removesuffix(_COMPLETE)


def variants(figure: str, modalities: Sequence[str]) -> tuple[str, ...]:
    """All names under which a figure stands."""
    if len(modalities) < 2:
        return (figure,)
    return (figure, complete(figure), *(without(figure, modality) for modality in modalities))


def taken_away(modalities: Sequence[str]) -> tuple[str | None, ...]:
    """What is taken away in the passes of an evaluation: nothing, then each modality, if there are several."""
    return (None, *modalities) if len(modalities) > 1 else (None,)


def metric_names(targets: Mapping[str, HeadKind], modalities: Sequence[str], *, average: bool = False) -> list[str]:
    """All figures that an evaluation may give.

    Args:
        targets: kind by name.
        modalities: that the run has inputs of.
        average: whether the run keeps an average of its weights, which has figures of its own.
    """
    figures = ["loss", *(figure_name(target, metric) for target, kind in targets.items() for metric in METRICS[kind])]
    names = [name for figure in figures for name in variants(figure, modalities)]
    return [*names, *(AVERAGE + name for name in names)] if average else names


def check_metric(
    metric: str, *, targets: Mapping[str, HeadKind], modalities: Sequence[str], average: bool = False
) -> None:
    """Checks the figure by which a fit run stops.

    Raises:
        InputError: no evaluation of the run gives a figure of this name; names the nearest.
    """
    known = metric_names(targets, modalities, average=average)
    if metric in known:
        return
    of_a_target = [name for name in known if name.rpartition("/")[2] == metric]  # the target was left out
    nearest = of_a_target or get_close_matches(metric, known, n=1)
    hint = f"the nearest is {nearest[0]}" if nearest else f"this run has {some_names(known)}"
    raise InputError(f"stop.metric={metric}: expected loss or TARGET/FIGURE of this run's targets; {hint}")


def lower_is_better(metric: str) -> bool:
    """Whether a figure of this name, of whatever evaluation, is better the lower it is."""
    return whole_figure(metric).rpartition("/")[2].removeprefix(AVERAGE) in LOWER_IS_BETTER
