"""The evaluations of a run while it trains: which of them are due, and where their scores go."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from clipx.distributed.parallelize import reshard
from clipx.errors import InputError
from clipx.storage.folders import write_atomically
from clipx.train.build import Run
from clipx.train.liveness.watchdog import Watchdog

log = logging.getLogger(__name__)


def missing_evaluations(run: Run) -> dict[str, Path]:
    """The evaluations that are due at the current step and have no result file yet.

    Returns:
        The path of the result file by name of the evaluation; equal on all ranks.
    """
    step = run.progress.step
    last = step == run.length.num_steps
    due = {
        name: run.run_dir / "eval" / f"{name}-{step:08d}.json"
        for name, config in run.config.evaluate.items()
        if last or (config.every_steps > 0 and step > 0 and step % config.every_steps == 0)
    }
    if not due:
        return {}
    missing = [name for name, path in due.items() if not os.path.exists(path)]
    return {name: due[name] for name in run.runtime.broadcast_from_rank0(missing)}


def evaluate(run: Run, missing: Mapping[str, Path], *, watchdog: Watchdog) -> None:
    """Runs evaluations on all ranks; rank 0 writes their scores. One whose data cannot be read is logged and left out.

    No step of the run may be pending. The watchdog hears of every forward pass, so that no long evaluation is a stall.
    """
    step = run.progress.step
    for name, path in missing.items():
        try:
            with run.monitor.pause(), _watched(run, watchdog):
                scores, intervals = _scores(run, name)
        except InputError as error:  # the same on all ranks; an evaluation set is no reason to lose a run
            if run.runtime.is_main:
                log.error("EVALUATION %s OF STEP %d FAILED (%s); the run goes on", name, step, error)
            continue
        if run.runtime.is_main:
            _write_scores(path, {"step": step, "name": name, **scores, "intervals": intervals})
            run.monitor.track({f"eval/{name}/{metric}": value for metric, value in scores.items()}, step=step)
            log.info("step %d  %s  %s", step, name, "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))


def _scores(run: Run, name: str) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The scores of the weights and, if the run keeps an average of them, its scores under names with `ema_`.

    With them come the 95% intervals of those that have one.
    """
    from clipx.evaluate.bootstrap import RESAMPLES
    from clipx.evaluate.run import evaluate_config

    scores: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}

    def score(prefix: str) -> None:
        try:
            with torch.no_grad(), run.runtime.accelerator.autocast():
                found = evaluate_config(run.config.evaluate[name], run.encoder, run.runtime.group, resamples=RESAMPLES)
        finally:
            reshard(run.stepper.model)
        for metric, value in found.metrics.items():
            scores[prefix + metric] = value
            if (ends := found.interval(metric)) is not None:
                intervals[prefix + metric] = ends

    score("")
    if run.stepper.ema is not None:
        with run.stepper.ema.swapped():
            score("ema_")
    return scores, intervals


@contextmanager
def _watched(run: Run, watchdog: Watchdog) -> Iterator[None]:
    """Tells the watchdog of every forward pass of a tower within the block."""

    def tell(*_: object) -> None:
        watchdog.set_activity("evaluation", step=run.progress.step)

    tell()
    towers = run.stepper.objective.model
    hooks = [tower.register_forward_pre_hook(tell) for tower in (towers.image_tower, towers.text_tower)]
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
