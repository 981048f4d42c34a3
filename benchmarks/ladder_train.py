"""One run of a ladder, in a process of its own: trains by a job's file, and notes what the training itself has cost.

    ladder_train.py JOB.json

The job (`Workshop` in ladder_jobs.py writes it) names config files and overrides. `cost.jsonl` in its folder gets a row
at every save and every evaluation: the step, seconds of training so far by the job's clock, and FLOPs. Starts (a
phase's, too), evaluations and saves are not training; reading and the step are. A run that was stopped counts on from
the row of its step. Seconds of `cpu` are those of this process and all its children (loader processes), so that what
else the machine does stays out.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

import clipx
from clipx.config.schema import RunConfig
from clipx.errors import RunError
from clipx.train import trainer

Row = dict[str, Any]


def cpu_seconds() -> float:
    """Of this process, of its children that have ended, and of all below it that live (Linux)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(one.ru_utime + one.ru_stime for one in used)
    parents: dict[int, tuple[int, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            values = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        ticks = sum(map(int, values[11:15]))  # its own, and those of its children that have ended
        parents[int(path.parent.name)] = (int(values[1]), ticks / os.sysconf("SC_CLK_TCK"))
    below = {os.getpid()}
    while more := {pid for pid, (parent, _) in parents.items() if parent in below} - below:
        below |= more
    return total + sum(parents[pid][1] for pid in below - {os.getpid()})


CLOCKS: dict[str, Callable[[], float]] = {"cpu": cpu_seconds, "wall": time.perf_counter}


class Meter:
    """What the training of a run has cost so far, over all its starts.

    Args:
        clock: of CLOCKS.
        path: of the rows; rank 0 writes them.
    """

    def __init__(self, clock: str, path: Path) -> None:
        self.now, self._path = CLOCKS[clock], path
        self._before_s = self._aside_s = 0.0
        self._began: float | None = None
        self._paused: float | None = None
        self.flops = 0.0

    def start(self, step: int) -> None:
        """The first step comes now, or that of the next phase.

        Raises:
            RunError: the run goes on from a step, and no row says what came before it.
        """
        if self._began is not None:
            if self._paused is not None:
                self._aside_s += self.now() - self._paused
                self._paused = None
            return
        if step:
            rows = [row for row in read_costs(self._path) if row["step"] == step]
            if not rows:
                begin_again = f"remove {self._path.parent} to begin it again"
                raise RunError(f"{self._path} has no row of step {step}, from which the run goes on; {begin_again}")
            self._before_s, self.flops = rows[-1]["train_s"], rows[-1]["flops"]
        self._began = self.now()

    @property
    def spent_s(self) -> float:
        if self._began is None:
            return 0.0
        now = self.now() if self._paused is None else self._paused
        return self._before_s + now - self._began - self._aside_s

    def pause(self) -> None:
        """What comes until the next `start` is no training: a phase has ended, and the next one is built."""
        self._paused = self.now()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is no training."""
        began = self.now()
        try:
            yield
        finally:
            self._aside_s += self.now() - began

    def note(self, step: int) -> None:
        if is_main():
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, "train_s": self.spent_s, "flops": self.flops}) + "\n")


def is_main() -> bool:
    """Whether this is rank 0, which writes."""
    return os.environ.get("RANK", "0") == "0"


def read_costs(path: Path) -> list[Row]:
    """The whole rows of a cost.jsonl."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


@contextmanager
def metered(meter: Meter, steps: list[Row] | None = None) -> Iterator[None]:
    """Lets the meter see what the trainer does; `steps` gets a row for each step, with its phase."""
    seen = {name: getattr(trainer, name) for name in ("record_start", "evaluate")}
    loop_methods = ("read_pending_step", "launch_step", "save", "fit")
    read, launch, save, fit = (getattr(trainer.Loop, name) for name in loop_methods)

    def record_start(run: Any, **more: Any) -> None:
        seen["record_start"](run, **more)
        meter.start(run.progress.step)

    def evaluate(run: Any, *arguments: Any, **more: Any) -> None:
        meter.note(run.progress.step)
        with meter.aside():
            seen["evaluate"](run, *arguments, **more)

    def read_pending_step(loop: Any) -> Any:
        outcome = read(loop)
        if outcome is not None:
            meter.flops += outcome.counts.get("model_flops", 0.0)
        return outcome

    def launch_step(loop: Any, batch: Any) -> Any:
        orders = launch(loop, batch)
        if steps is not None:
            steps.append({"until": loop.run.phase.until, "train_s": meter.spent_s, "flops": meter.flops})
        return orders

    def aside_save(loop: Any, **more: Any) -> None:
        loop.read_pending_step()  # the device's work belongs to the step
        meter.note(loop.run.progress.step)  # before: where there is a checkpoint, its row is there
        with meter.aside():
            save(loop, **more)

    def paused_fit(loop: Any) -> Any:
        try:
            return fit(loop)
        finally:
            meter.pause()

    own = (read_pending_step, launch_step, aside_save, paused_fit)
    try:
        trainer.record_start, trainer.evaluate = record_start, evaluate
        for name, method in zip(loop_methods, own, strict=True):
            setattr(trainer.Loop, name, method)
        yield
    finally:
        trainer.record_start, trainer.evaluate = seen["record_start"], seen["evaluate"]
        for name, method in zip(loop_methods, (read, launch, save, fit), strict=True):
            setattr(trainer.Loop, name, method)


def step_cost(rows: list[Row], name: str) -> float:
    """The mean cost of a step, from a short run with the same phases: in each the median, without its first steps."""
    total = begun = 0.0
    for until in sorted({row["until"] for row in rows}):
        values = [row[name] for row in rows if row["until"] == until]
        costs = [after - before for before, after in pairwise(values)]
        costs = costs[min(2, len(costs) // 2) :] or [values[-1] / max(1, len(rows))]
        total += (until - begun) * median(costs)
        begun = until
    return total / begun


def write_step_cost(path: Path, rows: list[Row]) -> None:
    """Writes step.json, whole or not at all: where it is, the short run is not done again."""
    if is_main():
        whole = path.with_suffix(".tmp")
        whole.write_text(json.dumps({name: step_cost(rows, name) for name in ("train_s", "flops")}))
        whole.replace(path)


def load(job: Row) -> RunConfig:
    """The job's config, with its evaluations alone."""
    config = clipx.load_config(job["files"], job["overrides"])
    assert isinstance(config, RunConfig)
    return replace(config, evaluate={name: config.evaluate[name] for name in job["evaluate"]})


def settle(job: Row) -> None:
    """One core, one thread, where the job says so."""
    if job["core"] is not None:
        os.sched_setaffinity(0, {job["core"]})
        torch.set_num_threads(1)


def main() -> int:
    path = Path(sys.argv[1])
    job = json.loads(path.read_text())
    settle(job)
    config, meter = load(job), Meter(job["clock"], path.with_name("cost.jsonl"))
    steps: list[Row] | None = [] if job["calibrates"] else None
    with metered(meter, steps):
        status = clipx.train(config)
    if steps is not None and status is clipx.Status.COMPLETE:  # of one that was stopped nothing is kept
        write_step_cost(path.with_name("step.json"), steps)
    return int(status.exit_code)


if __name__ == "__main__":
    sys.exit(main())
