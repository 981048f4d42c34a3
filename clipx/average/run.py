"""Averages models, chooses among averages by evaluation sets, and writes the best as a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ProcessGroup

from clipx import __version__
from clipx.average.mean import NamedTensors, RunningMean, Tensors, between
from clipx.average.options import AverageOptions, require_place
from clipx.average.scores import Judge, mean_score
from clipx.average.sources import Sources
from clipx.average.write import write_average
from clipx.distributed.collectives import rank
from clipx.errors import InputError
from clipx.export.folder import readable_errors

OnScores = Callable[[str, Mapping[str, float]], None]
"""Gets the name of what was scored, and the score of each set."""


@dataclass(frozen=True, kw_only=True)
class _Average:
    """An average that is computed when it is read, and what the result's record says of it."""

    tensors: NamedTensors
    record: dict[str, Any]


def average_models(
    options: AverageOptions,
    to: Path,
    *,
    device: torch.device | str = "cpu",
    group: ProcessGroup | None = None,
    on_scores: OnScores | None = None,
) -> dict[str, Any]:
    """Writes the folder `to`: a model whose weights are an average, replacing an earlier one there.

    Averages are computed in float64 and rounded once to float32. Models are loaded one at a time: memory does not grow
    with their number.

    Args:
        device: of the evaluations.
        group: the ranks that share the evaluations; the first writes.
        on_scores: gets each alpha or model as it was scored, with the score of each set; on the first rank.

    Returns:
        The content of average.json: each model with its share, its checksum and, where sets chose, its scores.

    Raises:
        InputError: a path has no model, models differ in architecture or hold NaN, a set cannot be evaluated, or `to`
            is one of the models, holds other files or cannot be written.
        RunError: what was written does not load as what was averaged.
    """
    to = to.resolve()
    with readable_errors(to):
        require_place(options, to)
    if on_scores is None or rank(group) > 0:
        on_scores = _tell_nobody
    sources = Sources(take=options.take, device=device)
    if options.greedy:
        average = _greedy(options, sources, group, on_scores)
    elif options.start is not None:
        average = _towards(options, options.start, sources, group, on_scores)
    else:
        mean, models = _mean(options, sources)
        average = _Average(tensors=mean.mean(), record={"models": models})
    record = {"clipx": __version__, **average.record}
    dtypes = {name: tensor.dtype for name, tensor in sources.frame.model.state_dict().items()}
    tensors = {name: tensor.to(dtypes[name]) for name, tensor in average.tensors}
    _require_variances(tensors)
    if rank(group) == 0:
        write_average(to, tensors, sources.frame, config_text=sources.config_text, record=record)
    return record


def _tell_nobody(name: str, scores: Mapping[str, float]) -> None:
    """Stands where nobody wants to know scores before the end."""


def _require_variances(tensors: Tensors) -> None:
    """Raises InputError if a batch norm has a variance below 0, which only alphas beyond the ends can give."""
    for name, tensor in tensors.items():
        if name.endswith("running_var") and (tensor < 0).any():
            raise InputError(f"{name} is a variance, and would be below 0; give alphas nearer to 0 to 1")


def _mean(options: AverageOptions, sources: Sources) -> tuple[RunningMean, list[dict[str, Any]]]:
    weights = options.weights or (1.0,) * len(options.models)
    mean, models = RunningMean(), []
    for path, weight in zip(options.models, weights, strict=True):
        tensors, entry = sources.load(path)
        mean.add(tensors, weight)
        models.append({**entry, "share": weight / sum(weights)})
        del tensors  # or they would be there while the next model is loaded
    return mean, models


def _towards(
    options: AverageOptions, path: Path, sources: Sources, group: ProcessGroup | None, on_scores: OnScores
) -> _Average:
    """The average at the alpha with the best mean score, of equal ones the first that was named."""
    mean, models = _mean(options, sources)
    end = dict(mean.mean())
    del mean
    start, entry = sources.load(path)
    record: dict[str, Any] = {"models": models, "start": entry, "alpha": options.alphas[0]}
    if options.on:
        judge = _judge(options, sources, group)
        table: list[dict[str, Any]] = []
        for alpha in options.alphas:
            scores = judge.score(between(start, end, alpha=alpha))
            on_scores(f"alpha {alpha:g}", scores)
            table.append({"alpha": alpha, "scores": scores, "mean": mean_score(scores)})
        record |= {"alpha": max(table, key=lambda row: row["mean"])["alpha"], "alphas": table}
    return _Average(tensors=between(start, end, alpha=record["alpha"]), record=record)


def _greedy(options: AverageOptions, sources: Sources, group: ProcessGroup | None, on_scores: OnScores) -> _Average:
    """Model soups, arXiv 2203.05482, recipe 1: models from the best score down, each taken in unless the score falls.

    Of equal scores the model that was named first comes first.
    """
    judge: Judge | None = None
    models: list[dict[str, Any]] = []
    for path in options.models:
        tensors, entry = sources.load(path)
        judge = judge or _judge(options, sources, group)
        models.append({**entry, "scores": judge.score(iter(tensors.items()))})
        on_scores(entry["model"], models[-1]["scores"])
    assert judge is not None, "no models"
    alone = [mean_score(entry["scores"]) for entry in models]
    mean, best = RunningMean(), -1.0
    for index in sorted(range(len(models)), key=lambda index: -alone[index]):
        tensors, entry = sources.load(options.models[index])
        if entry["sha256"] != models[index]["sha256"]:
            raise InputError(f"{entry['model']} changed meanwhile; name a checkpoint of it, not the run")
        scores = models[index]["scores"] if mean.total == 0 else judge.score(mean.mean_with(tensors, 1.0))
        taken = mean_score(scores) >= best
        if taken:
            mean.add(tensors, 1.0)
            best = mean_score(scores)
        models[index] |= {"taken": taken, "scores_with_it": scores, "mean_with_it": mean_score(scores)}
    for entry in models:
        entry["share"] = entry["taken"] / mean.total
    return _Average(tensors=mean.mean(), record={"models": models, "mean": best})


def _judge(options: AverageOptions, sources: Sources, group: ProcessGroup | None) -> Judge:
    return Judge(sources.frame, options.on, batch_size=options.batch_size, group=group)
