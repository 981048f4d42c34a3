"""The evaluations of a run while it trains: which of them are due, and where their scores go."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from clipx.checkpoint.best import (
    EVAL_FOLDER,
    best_first,
    measured_by,
    read_scores,
    reason_to_stop,
    result_name,
    standing,
    stop_rule,
)
from clipx.config.fit import FitConfig
from clipx.config.fit_metrics import AVERAGE, EVALUATION
from clipx.distributed.parallelize import reshard
from clipx.errors import InputError, RunError
from clipx.storage.folders import folder_at, write_atomically
from clipx.train.build import Run
from clipx.train.liveness.watchdog import Watchdog

if TYPE_CHECKING:
    from clipx.evaluate.options import Evaluation

log = logging.getLogger(__name__)


def due_evaluations(run: Run) -> list[str]:
    """Names of the evaluations that belong to the current step: a fit run's to every end of an epoch."""
    step, last, config = run.progress.step, run.progress.step == run.length.num_steps, run.config
    if isinstance(config, FitConfig):
        return [EVALUATION] if last or config.ends_epoch(step, run.length) else []
    return [
        name
        for name, evaluation in config.evaluate.items()
        if last or (evaluation.every_steps > 0 and step > 0 and step % evaluation.every_steps == 0)
    ]


def missing_evaluations(run: Run) -> dict[str, Path]:
    """The evaluations that are due at the current step and have no result file yet.

    Returns:
        The path of the result file by name of the evaluation; equal on all ranks.
    """
    folder = run.run_dir / EVAL_FOLDER
    due = {name: folder / result_name(name, run.progress.step) for name in due_evaluations(run)}
    if not due:
        return {}
    missing = [name for name, path in due.items() if not os.path.exists(path)]
    return {name: due[name] for name in run.runtime.broadcast_from_rank0(missing)}


class EarlyStopping(NamedTuple):
    """What the evaluations so far mean for a run with `stop`."""

    is_best: bool
    """Whether the current step is the best one."""
    early_end: str | None
    """Why the run ends here, before its last step; None if it goes on."""


def early_stopping(run: Run) -> EarlyStopping:
    """What the results up to the current step say; equal on all ranks, which all call this.

    A function of these results alone, so a run that goes on decides as it did before.

    Raises:
        RunError: the results cannot be read; on all ranks alike.
    """
    rule, found = stop_rule(run.config), EarlyStopping(is_best=False, early_end=None)
    if rule is None:
        return found
    step = run.progress.step
    with run.runtime.raise_on_all_ranks():
        if run.runtime.is_main:
            try:
                scores = read_scores(folder_at(run.run_dir), rule, until=step)
            except OSError as error:
                folder = run.run_dir / EVAL_FOLDER
                raise RunError(f"{folder} cannot be read ({error}); repair the storage, then start again") from error
            reason = None if step == run.length.num_steps else reason_to_stop(scores, rule)
            found = EarlyStopping(is_best=best_first(scores, rule)[:1] == [step], early_end=reason)
    return run.runtime.broadcast_from_rank0(found)


def evaluate(run: Run, missing: Mapping[str, Path], *, watchdog: Watchdog) -> None:
    """Runs evaluations on all ranks; rank 0 writes their scores. One whose data cannot be read is logged and left out.

    No step of the run may be pending. The watchdog hears of every forward pass, so that no long evaluation is a stall.
    """
    step = run.progress.step
    for name, path in missing.items():
        try:
            with run.monitor.pause(), _watched(run, watchdog):
                found = _measured(run, name)
        except InputError as error:  # the same on all ranks; an evaluation set is no reason to lose a run
            if run.runtime.is_main:
                log.error("EVALUATION %s OF STEP %d FAILED (%s); the run goes on", name, step, error)
            continue
        if run.runtime.is_main:
            measured = measured_by(run.config, name)
            more = found.more if measured is None else {"measured": measured, **found.more}
            _write_scores(path, {"step": step, "name": name, **found.scores, **more})
            run.monitor.track({f"eval/{name}/{metric}": value for metric, value in found.scores.items()}, step=step)
            note = f"  ({found.more['note']})" if "note" in found.more else ""
            log.info("step %d  %s  %s%s", step, name, _shown(run, found.scores), note)
            _say_standing(run, name)


class _Measured(NamedTuple):
    """What an evaluation found."""

    scores: dict[str, float]
    """Of the weights and, if the run keeps an average of them, its scores under names with `ema_`."""
    more: dict[str, object]
    """What its file says besides: 95% intervals of those that have one, a note, and of a fit run what is trivial."""


def _measured(run: Run, name: str) -> _Measured:
    scores: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    more: dict[str, object] = {"intervals": intervals}

    def score(prefix: str) -> None:
        try:
            with torch.no_grad(), run.runtime.accelerator.autocast():
                found = _evaluation(run, name)
        finally:
            reshard(run.stepper.model)
        for metric, value in found.metrics.items():
            scores[prefix + metric] = value
            if (ends := found.interval(metric)) is not None:
                intervals[prefix + metric] = ends
        if isinstance(run.config, FitConfig):
            more["trivial"] = found.derived
        if found.note:
            more["note"] = found.note

    score("")
    if run.stepper.ema is not None:
        with run.stepper.ema.swapped():
            score(AVERAGE)
    return _Measured(scores, more)


def _evaluation(run: Run, name: str) -> "Evaluation":
    """The scores of the weights as they are."""
    if isinstance(run.config, FitConfig):
        from clipx.train.held_out import evaluate_held_out

        return evaluate_held_out(run, run.config)
    from clipx.evaluate.bootstrap import RESAMPLES
    from clipx.evaluate.run import evaluate_config

    evaluation = run.config.evaluate[name]
    return evaluate_config(evaluation, run.encoder, run.runtime.group, run=run.config, resamples=RESAMPLES)


def _shown(run: Run, scores: Mapping[str, float]) -> str:
    """The scores in a line for a person."""
    if isinstance(run.config, FitConfig):
        from clipx.train.held_out import headline

        return headline(run.config, scores)
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())


def _say_standing(run: Run, name: str) -> None:
    """Logs how the figure that decides stands, if the evaluation is the one that gives it."""
    rule = stop_rule(run.config)
    if rule is None or rule.evaluation != name:
        return
    with suppress(OSError):  # `early_stopping` says so
        scores = read_scores(folder_at(run.run_dir), rule, until=run.progress.step)
        if scores and scores[-1].value is None:
            why = "the held-out rows do not define %s (they have one class or value, or predictions are no numbers)"
            if not isinstance(run.config, FitConfig):
                why = "%s is no finite number"
            said = f"step %d: {why}; this counts as no better"
            log.warning(said, run.progress.step, rule.title or rule.metric)
        log.info("step %d  %s", run.progress.step, standing(scores, rule))


@contextmanager
def _watched(run: Run, watchdog: Watchdog) -> Iterator[None]:
    """Tells the watchdog of every forward pass of a tower, or of the model, within the block."""

    def tell(*_: object) -> None:
        watchdog.set_activity("evaluation", step=run.progress.step)

    tell()
    model = run.stepper.objective.model
    hooks = [part.register_forward_pre_hook(tell) for part in (model, model.image_tower, model.text_tower)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _write_scores(path: Path, scores: dict[str, object]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(scores, indent=2))
    except OSError as error:
        log.error("cannot write %s (%s); the run goes on", path, error)
