"""The figures of a pretraining run's evaluations, by name: `EVALUATION/FIGURE`, as `stop.metric` has them.

Imports no torch, so that a wrong name is said at once.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import assert_never

from clipx.config.evaluate import EvaluateConfig, HeldOutLossConfig, RetrievalConfig, ZeroShotConfig
from clipx.config.fit_metrics import AVERAGE
from clipx.errors import InputError, some_names

_WAYS, _DEPTHS = ("image_to_text", "text_to_image"), (1, 5, 10)


def figures_of(evaluation: EvaluateConfig) -> tuple[str, ...]:
    """The figures that an evaluation gives of the weights."""
    match evaluation:
        case ZeroShotConfig():
            return ("acc1", "acc5", "mean_per_class_recall")
        case RetrievalConfig():
            return tuple(f"{way}_recall@{depth}" for way in _WAYS for depth in _DEPTHS)
        case HeldOutLossConfig():
            return ("loss",)
        case _:
            assert_never(evaluation)


def check_evaluation_metric(metric: str, evaluations: Mapping[str, EvaluateConfig], *, average: bool) -> None:
    """Checks the figure by which a pretraining run stops.

    Args:
        metric: EVALUATION/FIGURE.
        evaluations: of the run, by name.
        average: whether the run keeps an average of its weights, which has figures of its own.

    Raises:
        InputError: no evaluation of the run gives such a figure while it trains; names the nearest.
    """
    said = f"stop.metric={metric}"
    if not evaluations:
        raise InputError(
            f"{said}: the run has no evaluation; add one, e.g. "
            "evaluate.val={type: loss, data: HELD_OUT_SHARDS, every_steps: 500}"
        )
    name, slash, figure = metric.partition("/")
    known = {key: _names(evaluation, average=average) for key, evaluation in evaluations.items()}
    if not slash:
        every = [f"{key}/{each}" for key, names in known.items() for each in names]
        found = [each for each in every if metric in each.split("/")] or get_close_matches(metric, every, n=1)
        hint = f"the nearest is {found[0]}" if found else f"this run has {some_names(every)}"
        raise InputError(f"{said}: expected EVALUATION/FIGURE; {hint}")
    if name not in evaluations:
        nearest = get_close_matches(name, evaluations, n=1)
        hint = f"the nearest is {nearest[0]!r}" if nearest else f"this run has {some_names(list(evaluations))}"
        raise InputError(f"{said}: `evaluate` has no {name!r}; {hint}")
    if figure not in known[name]:
        if figure.removeprefix(AVERAGE) in known[name]:
            raise InputError(f"{said}: the run keeps no average of its weights; set ema.decay, or take {AVERAGE} away")
        nearest = get_close_matches(figure, known[name], n=1)
        hint = f"the nearest is {name}/{nearest[0]}" if nearest else f"it gives {some_names(known[name])}"
        raise InputError(f"{said}: evaluate.{name} gives no figure {figure!r}; {hint}")
    if not evaluations[name].every_steps:
        raise InputError(
            f"{said}: evaluate.{name}.every_steps=0 evaluates at the end alone, where nothing is left to stop; set it "
            "to a number of steps"
        )


def _names(evaluation: EvaluateConfig, *, average: bool) -> list[str]:
    figures = figures_of(evaluation)
    return [*figures, *(AVERAGE + figure for figure in figures if average)]
