"""What a fit run's model is worth on held-out rows, beside what costs nothing: read from the folder of the run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.checkpoint.best import EVAL_FOLDER, Result, best_first, read_result, read_scores, stop_rule
from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import HeadKind, Modality
from clipx.config.fit_metrics import AVERAGE, EVALUATION, complete, figure_name, without
from clipx.errors import InputError
from clipx.storage.folders import folder_at

SHOWN: Mapping[HeadKind, tuple[str, ...]] = {
    "class": ("accuracy", "macro_f1"),
    "number": ("mae", "r2"),
    "labels": ("macro_f1", "auroc"),
}
"""The figures of a target that a person is shown, by its kind."""


@dataclass(frozen=True)
class FigureRow:
    """A figure of a target."""

    target: str
    figure: str
    trivial: float | None
    """Of the most frequent class, of labels as they are frequent, of the mean."""
    less: Mapping[Modality, float | None]
    """Of the model on the rows that have all inputs, with those of a modality taken away; empty if there is one."""
    complete: float | None
    """Of the model on the same rows, with all inputs."""
    all: float | None
    """Of the model on all rows."""


@dataclass(frozen=True)
class Figures:
    """The figures of the model of a run; None where the held-out rows do not define one."""

    step: int
    rows: Sequence[FigureRow]


def read_figures(config: FitConfig) -> Figures:
    """The figures at the step of the run's model: the best if the run stops by a figure, else the last one.

    Raises:
        InputError: the run has no evaluation.
    """
    result = _result(config)
    if result is None:
        raise InputError(f"{config.run_dir} has no {EVAL_FOLDER}/{EVALUATION}-STEP.json; train it with clipx train")
    return Figures(result.step, list(_rows(config, result.content)))


def _result(config: FitConfig) -> Result | None:
    folder = folder_at(str(Path(config.run_dir) / EVAL_FOLDER))
    found = [read_result(folder, name) for name in folder.names() if name.startswith(f"{EVALUATION}-")]
    results = {result.step: result for result in found if result is not None}
    rule = stop_rule(config)
    steps = (
        sorted(results, reverse=True)
        if rule is None
        else best_first(read_scores(folder_at(config.run_dir), rule), rule)
    )
    return next((results[step] for step in steps if step in results), None)


def _rows(config: FitConfig, content: Mapping[str, Any]) -> Iterator[FigureRow]:
    trivial = content.get("trivial", {})
    prefix = AVERAGE if config.ema is not None else ""  # which is the model, where a run keeps one
    several = config.modalities if len(config.modalities) > 1 else ()
    for name, target in config.targets.items():
        for figure in SHOWN[target.type]:
            yield FigureRow(
                name,
                figure,
                trivial=trivial.get(figure_name(name, figure)),
                less={each: content.get(prefix + without(figure_name(name, figure), each)) for each in several},
                complete=content.get(prefix + complete(figure_name(name, figure))),
                all=content.get(prefix + figure_name(name, figure)),
            )
