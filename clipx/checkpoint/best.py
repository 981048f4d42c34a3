"""Whether a run still gets better, and which of its steps are the best: by the scores in its folder.

All of it is a function of the files that evaluations write, `eval/NAME-STEP.json`. So a run that was stopped or killed
decides as one that was not, and whoever is pointed at a run folder finds the same best checkpoint. Imports no torch.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from clipx.config.data import sources
from clipx.config.evaluate import HeldOutLossConfig
from clipx.config.fit import FitConfig
from clipx.config.fit_metrics import AVERAGE, EVALUATION, lower_is_better
from clipx.config.schema import JobConfig
from clipx.storage.folders import Folder

EVAL_FOLDER = "eval"
"""The folder of the results, in that of the run."""
_SAME_FIGURE = frozenset({"data", "image_key", "every_steps", "batch_size"})
"""Keys of an evaluation that do not change what it measures."""
_RESULT = re.compile(r"(.+)-(\d{8,})\.json")


@dataclass(frozen=True)
class StopRule:
    """When a run ends before its last step, and what its best step is."""

    evaluation: str
    """Name of the evaluation that decides."""
    metric: str
    """Name of its figure."""
    patience: int
    """Evaluations in a row that may be no better than the best before."""
    title: str = ""
    """What a person calls the figure, if not by its name."""
    measured: str | None = None
    """What the evaluation measures, as `measured_by`."""


class Score(NamedTuple):
    """The figure that decides, at one step; None where the evaluation did not define it."""

    step: int
    value: float | None


class Result(NamedTuple):
    """What a file of an evaluation's result holds."""

    evaluation: str
    step: int
    content: dict[str, Any]


def stop_rule(config: JobConfig) -> StopRule | None:
    """The rule of a run; None if it trains all its steps, and its newest checkpoint is its model."""
    if config.stop is None:
        return None
    if isinstance(config, FitConfig):
        return StopRule(EVALUATION, config.stop.metric, config.stop.patience)
    evaluation, _, figure = config.stop.metric.partition("/")
    measured = measured_by(config, evaluation)
    return StopRule(evaluation, figure, config.stop.patience, title=config.stop.metric, measured=measured)


def measured_by(config: JobConfig, evaluation: str) -> str | None:
    """What an evaluation measures, in a short text: figures of another text cannot be compared with its own.

    A held-out loss depends on the size of its batches, which is the run's own by default, and on the loss. Where the
    data lie says nothing, they may have been moved. None for a fit run, whose held-out rows are a part of its data.
    """
    if isinstance(config, FitConfig) or evaluation not in config.evaluate:
        return None
    asked = config.evaluate[evaluation]
    settings = {key: value for key, value in asdict(asked).items() if key not in _SAME_FIGURE}
    if isinstance(asked, HeldOutLossConfig):
        settings["loss"] = config.loss.type
        settings["pairs"] = asked.pairs_of_batch(config.global_batch_size, config.data.captions_per_image)
        settings["equal_captions"] = sorted({source.equal_captions for source in sources(config.data)})
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def result_name(evaluation: str, step: int) -> str:
    """The name of the file of an evaluation's result."""
    return f"{evaluation}-{step:08d}.json"


def read_result(folder: Folder, name: str) -> Result | None:
    """The result in a file of this name, if it is one that a run wrote.

    Raises:
        OSError: the storage did not answer.
    """
    match = _RESULT.fullmatch(name)
    if match is None:
        return None
    try:
        content = json.loads(folder.read(name).decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    result = Result(match[1], int(match[2]), content)
    own = isinstance(content, dict) and (content.get("name"), content.get("step")) == (result.evaluation, result.step)
    return result if own else None


def read_scores(run_folder: Folder, rule: StopRule, *, until: int | None = None) -> list[Score]:
    """The scores of the evaluation that decides, in the order of steps.

    Args:
        run_folder: of the run.
        rule: names the evaluation and its figure.
        until: the last step that counts: of what comes after it, the run knows nothing yet, or no more.

    Raises:
        OSError: the storage did not answer.
    """
    folder, scores = run_folder.child(EVAL_FOLDER), []
    for name in folder.names():
        result = read_result(folder, name) if name.startswith(f"{rule.evaluation}-") else None
        if result is not None and _counts(result, rule) and (until is None or result.step <= until):
            scores.append(Score(result.step, _finite(result.content.get(rule.metric))))
    return sorted(scores, key=lambda score: score.step)


def _counts(result: Result, rule: StopRule) -> bool:
    """Whether a result is one of those that are compared: of the evaluation that decides, as it measures now.

    One from before the run kept an average of its weights says nothing of an average.
    """
    content = result.content
    return (
        result.evaluation == rule.evaluation
        and content.get("measured", rule.measured) == rule.measured
        and (not rule.metric.startswith(AVERAGE) or any(key.startswith(AVERAGE) for key in content))
    )


def best_first(scores: Sequence[Score], rule: StopRule) -> list[int]:
    """The steps that have a score, from the best on; of equal ones the earlier is the better."""
    sign = 1 if lower_is_better(rule.metric) else -1
    known = [(sign * score.value, score.step) for score in scores if score.value is not None]
    return [step for _, step in sorted(known)]


def reason_to_stop(scores: Sequence[Score], rule: StopRule) -> str | None:
    """Why the run ends here: its last evaluations were no better than the best before; None if it goes on.

    An evaluation that does not define the figure is no better.
    """
    _, since = _since_best(scores, rule)
    return f"stop: {standing(scores, rule)}" if since >= rule.patience else None


def standing(scores: Sequence[Score], rule: StopRule) -> str:
    """How the figure stands, in words."""
    best, since = _since_best(scores, rule)
    figure = rule.title or rule.metric
    if best is None:
        return f"{figure} was not defined in {since} evaluations (patience {rule.patience})"
    if since == 0:
        return f"{figure} {best.value:.4g} is the best so far"
    times = f"{since} evaluation{'s' if since > 1 else ''} (patience {rule.patience})"
    return f"{figure} was no better than {best.value:.4g} of step {best.step} in {times}"


def _since_best(scores: Sequence[Score], rule: StopRule) -> tuple[Score | None, int]:
    """The best score, and how many evaluations there were since."""
    step = next(iter(best_first(scores, rule)), None)
    best = next((score for score in scores if score.step == step), None)
    return best, sum(best is None or score.step > best.step for score in scores)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
