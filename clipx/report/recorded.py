"""What a run folder tells of its run: figures, evaluations, starts, trouble, config and versions.

Whatever state the run is in: before its first row, training, stopped, failed, complete. What is not there is empty.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

from clipx.checkpoint.find import EXPORT_CONFIG
from clipx.checkpoint.manifest import MANIFEST
from clipx.checkpoint.state import RunState
from clipx.checkpoint.store import CONFIG, CheckpointStore, checkpoints_of
from clipx.config.fit import FitConfig
from clipx.config.load import load_config
from clipx.config.schema import JobConfig
from clipx.errors import ClipxError, InputError
from clipx.storage.json_rows import read_rows

_METRICS, _STATUS = "metrics.jsonl", "status.json"
_RESULT = re.compile(r"(.+)-(\d{8,})\.json")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One result of an evaluation."""

    step: int
    scores: Mapping[str, float]
    """Metrics by name, numbers alone."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Their 95% intervals, as far as they were written."""
    trivial: Mapping[str, float] = field(default_factory=dict)
    """Of a fit run: the same metrics of predictions that look at no input."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """All that is known of one run."""

    folder: Path
    name: str
    """Of the folder; where runs are compared, told apart."""
    rows: Sequence[Row]
    """Of metrics.jsonl, one for a step, ascending."""
    evaluations: Mapping[str, Sequence[Evaluated]]
    """By name, ascending."""
    status: Row
    """Of status.json; empty while the run trains, and where it was killed."""
    written_at: datetime | None
    """When its figures were last written."""
    starts: Sequence[Row] = ()
    rollbacks: Sequence[Row] = ()
    quarantine: Sequence[Row] = ()
    config: JobConfig | None = None
    config_problem: str = ""
    """Why there is no config."""
    config_text: str = ""
    state: RunState | None = None
    """Of the newest checkpoint."""
    checkpoints: Sequence[int] = ()
    """Their steps."""

    @property
    def samples(self) -> str:
        """What it sees many of: a fit run the rows of a table."""
        return "rows" if isinstance(self.config, FitConfig) else "pairs"

    @property
    def step(self) -> int:
        """The last step that is known to be done."""
        saved = 0 if self.state is None else self.state.progress.step
        rows = int(self.rows[-1]["step"]) if self.rows else 0
        return max(rows, int(finite(self.status.get("step")) or 0), saved)

    def last(self, figure: str) -> float | None:
        """The newest value of a figure that is a finite number."""
        return next((value for row in reversed(self.rows) if (value := finite(row.get(figure))) is not None), None)

    def points(self, figure: str, over: str = "step") -> list[tuple[float, float]]:
        """A figure at every row that has it; NaN where it was not finite."""
        rows = (row for row in self.rows if figure in row)
        return [(x, _value(row[figure])) for row in rows if (x := finite(row.get(over))) is not None]

    @property
    def versions(self) -> Mapping[str, str]:
        """Of what computed it, at the newest checkpoint or start."""
        saved = {} if self.state is None else self.state.versions
        started = self.starts[-1].get("versions") if self.starts else None
        return saved or (started if isinstance(started, dict) else {})


def read_run(folder: Path) -> Recorded:
    """Reads a run folder; nothing in it is changed.

    Raises:
        InputError: it is no run folder.
    """
    _require_run(folder)
    try:
        text = (folder / CONFIG).read_text(errors="replace") if (folder / CONFIG).is_file() else ""
        config, problem = _config(folder)
        store = _store(folder, config)
        state, checkpoints = _checkpoints(store)
        return Recorded(
            folder=folder,
            name=folder.absolute().name,
            rows=_by_step(read_rows(folder / _METRICS)),
            evaluations=_evaluations(folder / "eval"),
            status=_object(folder / _STATUS),
            written_at=_written_at(folder / _METRICS),
            starts=[row for row in read_rows(folder / "starts.jsonl") if _is_step(row.get("step"))],
            rollbacks=read_rows(folder / "rollbacks.jsonl"),
            quarantine=read_rows(folder / "quarantine.jsonl"),
            config=config,
            config_problem=problem,
            config_text=text,
            state=state,
            checkpoints=checkpoints,
        )
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror or error}); mend the storage") from error


def finite(value: object) -> float | None:
    """The value if it is a number that is finite."""
    number = _number(value)
    return None if number is None or not math.isfinite(number) else number


def _require_run(folder: Path) -> None:
    if not folder.is_dir():
        fault = "is a file" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {fault}; give a run folder, the run_dir of a training")
    if any((folder / name).is_file() for name in (EXPORT_CONFIG, MANIFEST)):
        raise InputError(f"{folder} is a model and no run folder; give the run_dir of the training that made it")
    own = ((folder / _METRICS).is_file(), (folder / _STATUS).is_file(), (folder / CONFIG).is_file())
    if not any(own) and not (folder / "checkpoints").is_dir():
        inside = next((path for path in sorted(folder.iterdir()) if (path / _METRICS).is_file()), None)
        hint = f"did you mean {inside}?" if inside is not None else "give the run_dir of a training"
        raise InputError(f"{folder} is no run folder: it has no {_METRICS}, {_STATUS} or {CONFIG}; {hint}")


def _config(folder: Path) -> tuple[JobConfig | None, str]:
    """The config of the latest start; else why there is none."""
    try:
        return load_config(folder / CONFIG), ""
    except ClipxError as error:
        return None, str(error)


def _store(folder: Path, config: JobConfig | None) -> CheckpointStore:
    """The run's checkpoints, wherever they lie; the folder may have been moved."""
    if config is None:
        return CheckpointStore(folder / "checkpoints")
    return checkpoints_of(replace(config, run_dir=str(folder)))


def _checkpoints(store: CheckpointStore) -> tuple[RunState | None, list[int]]:
    """The state of the newest checkpoint that has one, and all steps; empty where a store does not answer."""
    try:
        saved = store.checkpoints()
    except (OSError, ClipxError):
        return None, []
    for checkpoint in reversed(saved):
        with suppress(OSError, ClipxError):
            return checkpoint.state(), [checkpoint.step for checkpoint in saved]
    return None, [checkpoint.step for checkpoint in saved]


def _by_step(rows: Sequence[Row]) -> list[Row]:
    by_step = {row["step"]: row for row in rows if _is_step(row.get("step"))}
    return [by_step[step] for step in sorted(by_step)]


def _evaluations(folder: Path) -> dict[str, list[Evaluated]]:
    found: dict[str, list[Evaluated]] = {}
    for path in sorted(folder.glob("*.json")):
        result, match = _object(path), _RESULT.fullmatch(path.name)
        name, step = result.get("name"), result.get("step")
        if match is None or not isinstance(name, str) or not _is_step(step):
            continue
        scores, trivial = _numbers(result), _numbers(result.get("trivial"))
        evaluated = Evaluated(step=step, scores=scores, intervals=_intervals(result), trivial=trivial)
        found.setdefault(name, []).append(evaluated)
    return {name: sorted(found[name], key=lambda result: result.step) for name in sorted(found)}


def _numbers(result: object) -> dict[str, float]:
    """The figures of a result, or of a part of it."""
    given = result.items() if isinstance(result, dict) else ()
    return {key: number for key, value in given if key != "step" and (number := _number(value)) is not None}


def _intervals(result: Row) -> dict[str, tuple[float, float]]:
    given = result.get("intervals")
    found = {}
    for name, ends in given.items() if isinstance(given, dict) else ():
        numbers = [finite(end) for end in ends] if isinstance(ends, list) else []
        if len(numbers) == 2 and numbers[0] is not None and numbers[1] is not None:
            found[name] = (numbers[0], numbers[1])
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _written_at(path: Path) -> datetime | None:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.is_file() else None


def _is_step(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if isinstance(value, float) or abs(value) < 2**1023 else math.inf


def _value(value: object) -> float:
    number = _number(value)
    return float("nan") if number is None else number
