"""What the folder of a run tells of the run that trained a model, for its card: data, curve, scores."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipx.checkpoint.find import ModelFiles
from clipx.checkpoint.store import Checkpoint
from clipx.errors import ClipxError

_CURVE_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A training up to one checkpoint. What was not found is empty."""

    step: int
    samples_seen: int
    """Pairs."""
    num_samples: int
    """Samples of the training set."""
    num_shards: int
    versions: Mapping[str, str]
    """Of the libraries that computed it."""
    curve: tuple[Mapping[str, float], ...] = ()
    """At most ten rows of metrics.jsonl, the last one that of the step or the nearest before it."""
    scores: Mapping[str, tuple[int, Mapping[str, float]]] = field(default_factory=dict)
    """The step and the metrics of the latest result of each evaluation, by its name."""


def read_run(files: ModelFiles) -> RunRecord | None:
    """The record of a checkpoint in a run folder; None for a model that is no checkpoint, or whose state is unreadable.

    Rows and results of later steps than the checkpoint's are left out. A file that cannot be read counts as absent.
    """
    if files.kind != "checkpoint":
        return None
    try:
        state = Checkpoint(files.folder).state()
    except (ClipxError, OSError, ValueError, LookupError, TypeError):
        return None
    step, order = state.progress.step, state.data_order
    run_dir = None if files.folder.path is None else files.folder.path.absolute().parents[1]
    return RunRecord(
        step=step,
        samples_seen=state.progress.samples_seen,
        num_samples=order.num_samples,
        num_shards=order.num_shards,
        versions=state.versions,
        curve=() if run_dir is None else tuple(_curve(run_dir / "metrics.jsonl", step)),
        scores={} if run_dir is None else _scores(run_dir / "eval", step),
    )


def _curve(path: Path, step: int) -> list[Mapping[str, float]]:
    by_step = {row["step"]: row for row in _rows(path) if row["step"] <= step}  # a resumed run writes a step again
    rows: list[Mapping[str, float]] = [by_step[number] for number in sorted(by_step)]
    if len(rows) <= _CURVE_ROWS:
        return rows
    return [rows[round(place * (len(rows) - 1) / (_CURVE_ROWS - 1))] for place in range(_CURVE_ROWS)]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in _text(path).splitlines():
        row = _object(line)
        if isinstance(row.get("step"), int):
            yield row


def _scores(folder: Path, step: int) -> dict[str, tuple[int, Mapping[str, float]]]:
    latest: dict[str, tuple[int, Mapping[str, float]]] = {}
    for path in _files(folder):
        result = _object(_text(path))
        name, at = result.pop("name", None), result.pop("step", None)
        metrics = {key: value for key, value in result.items() if isinstance(value, int | float)}
        if isinstance(name, str) and isinstance(at, int) and at <= step and metrics:
            latest[name] = max((at, metrics), latest.get(name, (-1, {})), key=lambda found: found[0])
    return latest


def _files(folder: Path) -> Iterable[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError:
        return ()


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""
