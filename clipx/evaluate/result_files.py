"""Figures as leaderboards read them: DataComp's eval_results.jsonl, and CLIP_benchmark's JSON and CSV.

    DIR/eval_results.jsonl                             a line for each set: key, dataset, metrics with main_metric
        DATASET_PRETRAINED_MODEL_LANGUAGE_TASK.json    dataset, model, pretrained, task, metrics, language

Figures have the names that they have there; a figure that is no number is null.
"""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipx.data.suite_sets import SetPlace
from clipx.errors import InputError
from clipx.evaluate.options import their_name
from clipx.evaluate.suite import SetResult

LINES = "eval_results.jsonl"
LANGUAGE = "en"
_COLUMNS = ("dataset", "model", "pretrained", "language", "task", "model_fullname")


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """What result files call a model."""

    model: str
    """The architecture: the name of its image tower."""
    pretrained: str
    """The weights: MODEL as it was given."""


def datacomp_line(result: SetResult) -> str:
    """A line of eval_results.jsonl; `metrics.main_metric` is the figure that counts in the average."""
    metrics = {**_metrics(result, derived=True), "main_metric": _number(result.main_figure)}
    key = result.place.key if result.place.in_suite else result.place.title
    return json.dumps({"key": key, "dataset": result.place.title, "metrics": metrics})


def clip_benchmark_file(result: SetResult, name: ModelName) -> tuple[str, str]:
    """The name and the content of CLIP_benchmark's JSON of a set and a model."""
    task = _task(result)
    content = {
        "dataset": dataset_name(result.place),
        "model": name.model,
        "pretrained": name.pretrained,
        "task": task,
        "metrics": _metrics(result),
        "language": LANGUAGE,
    }
    parts = (dataset_name(result.place).removeprefix("wds/"), name.pretrained, name.model, LANGUAGE, task)
    return "_".join(map(slug, parts)) + ".json", json.dumps(content, indent=2) + "\n"


def csv_text(results: Sequence[tuple[ModelName, SetResult]]) -> str:
    """A table in the columns of CLIP_benchmark's `build`, with those of the intervals at the end."""
    rows = [_row(name, one) for name, result in results for one in result.by_task()]
    names = dict.fromkeys(key for row in rows for key in row)
    ends = [key for key in names if key.endswith(("_low", "_high"))]
    columns = [*(key for key in names if key not in (*_COLUMNS, *ends)), *_COLUMNS, *ends]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def dataset_name(place: SetPlace) -> str:
    """The set's name with CLIP_benchmark's sign of shards: wds/NAME for a folder wds_NAME, or a set of a suite."""
    if place.in_suite:
        return f"wds/{place.key}"
    return f"wds/{place.title.removeprefix('wds_')}" if place.title.startswith("wds_") else place.title


def require_different_names(places: Sequence[SetPlace], models: Sequence[str]) -> None:
    """Raises InputError if the files of two sets, or the folders of two models, would have one name."""
    sets = [(place.path, slug(dataset_name(place).removeprefix("wds/"))) for place in places]
    for kind, named in (("sets", sets), ("models", [(model, slug(model)) for model in models])):
        first: dict[str, str] = {}
        for what, name in named:
            if name in first:
                raise InputError(
                    f"--results: the {kind} {first[name]} and {what} would both write files called {name}; rename one, "
                    "or run them one by one"
                )
            first[name] = what


def _row(name: ModelName, result: SetResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        **_metrics(result),
        "dataset": dataset_name(result.place),
        "model": name.model,
        "pretrained": name.pretrained,
        "language": LANGUAGE,
        "task": _task(result),
        "model_fullname": f"{name.model} {name.pretrained}",
    }
    for metric in result.evaluation.metrics:
        if (interval := result.evaluation.interval(metric)) is not None:
            row[f"{their_name(metric)}_low"], row[f"{their_name(metric)}_high"] = interval
    return row


def _task(result: SetResult) -> str:
    task = result.evaluation.task
    return "zeroshot_classification" if task == "zeroshot_multilabel_classification" else task


def _metrics(result: SetResult, *, derived: bool = False) -> dict[str, float | None]:
    figures: Mapping[str, float] = result.evaluation.metrics
    if derived:
        figures = {**figures, **result.evaluation.derived}
    return {their_name(name): _number(value) for name, value in figures.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def slug(text: str) -> str:
    """A part of a file name, or a folder's; of a long path the end counts."""
    return re.sub(r"[^A-Za-z0-9@.+-]+", "_", text).strip("_")[-80:] or "_"
