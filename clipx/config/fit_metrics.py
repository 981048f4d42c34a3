"""The figures of a fit run's evaluations, by name: `loss`, and for each target `TARGET/FIGURE`.

Where a run has several modalities, each figure also stands under `..._without_MODALITY`: with that modality taken away
from all rows, over those that have another one. Imports no torch, so that a wrong `stop.metric` is said at once.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Literal

from clipx.errors import InputError, some_names

TargetKind = Literal["class", "number", "labels"]

METRICS: Mapping[TargetKind, tuple[str, ...]] = {
    "class": ("accuracy", "macro_f1", "auroc", "calibration_error", "loss"),
    "number": ("mae", "r2", "loss"),
    "labels": ("macro_f1", "auroc", "calibration_error", "loss"),
}
"""The figures of a target by its kind; `clipx.evaluate.supervised_metrics` defines them."""

HEADLINES: Mapping[TargetKind, str] = {"class": "accuracy", "number": "r2", "labels": "macro_f1"}
"""The figure of a target that a person is shown first, by its kind."""

LOWER_IS_BETTER = frozenset({"loss", "mae", "calibration_error"})
"""Figures that are better the lower they are; all others the higher."""

EVALUATION = "val"
"""Name of a fit run's evaluation, on its held-out rows."""

AVERAGE = "ema_"
"""Before the name of a figure: that of the average of the weights, where a run keeps one."""

_WITHOUT = "_without_"


def without(figure: str, modality: str | None) -> str:
    """The name of a figure where a modality is taken away; None: where all inputs are as they are."""
    return figure if modality is None else f"{figure}{_WITHOUT}{modality}"


def figure_name(target: str, metric: str, modality: str | None = None) -> str:
    """The name of a target's figure, with all inputs or without a modality."""
    return without(f"{target}/{metric}", modality)


def taken_away(modalities: Sequence[str]) -> tuple[str | None, ...]:
    """What is taken away in the passes of an evaluation: nothing, then each modality, if there are several."""
    return (None, *modalities) if len(modalities) > 1 else (None,)


def metric_names(targets: Mapping[str, TargetKind], modalities: Sequence[str], *, average: bool = False) -> list[str]:
    """All figures that an evaluation may give.

    Args:
        targets: kind by name.
        modalities: that the run has inputs of.
        average: whether the run keeps an average of its weights, which has figures of its own.
    """
    names = [
        name
        for modality in taken_away(modalities)
        for name in (
            without("loss", modality),
            *(figure_name(target, metric, modality) for target, kind in targets.items() for metric in METRICS[kind]),
        )
    ]
    return [*names, *(AVERAGE + name for name in names)] if average else names


def check_metric(
    metric: str, *, targets: Mapping[str, TargetKind], modalities: Sequence[str], average: bool = False
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
    return metric.rpartition("/")[2].removeprefix(AVERAGE).partition(_WITHOUT)[0] in LOWER_IS_BETTER
