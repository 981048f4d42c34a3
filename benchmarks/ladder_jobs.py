"""The work of a ladder, piece by piece: preparations, the cost of a recipe's step, one run, and the rows of a run.

Every piece leaves a file in the work folder when it is done, and is not done again; a run that was stopped goes on.
"""

import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ladder_spec import ROOT, Ingredient, Ladder, Recipe, filled
from ladder_train import read_costs

from clipx.config.yaml_text import write_yaml
from clipx.errors import RunError

HERE = Path(__file__).parent
UNITS = {"s": "train_s", "TFLOP": "flops"}
"""What a budget is in, and which column of step.json says what a step takes of it."""
AGAIN = 85
_REASON = re.compile(r"rror: \S")
"""In the line that says why a program failed; after it torchrun has a page of its own."""


class StoppedError(Exception):
    """The person asked for an end; what runs was saved."""


@dataclass(frozen=True)
class Budget:
    """What a run may take: seconds by the ladder's clock, or 10^12 FLOPs."""

    value: float
    unit: str

    @property
    def name(self) -> str:
        return f"{self.value:g} {self.unit}"


@dataclass(frozen=True)
class Planned:
    """One run of the ladder."""

    recipe: Recipe
    seed: int
    budget: Budget

    @property
    def name(self) -> str:
        return f"{self.recipe.name}, seed {self.seed}, {self.budget.name}"


@dataclass
class Workshop:
    """Does the pieces in the work folder.

    Args:
        ladder: what to do.
        work: folder; whatever is kept lies below it.
        data: folder of {data}.
        calibration_steps: of the short run that tells what a step costs.
    """

    ladder: Ladder
    work: Path
    data: Path
    calibration_steps: int
    _living: set["subprocess.Popen[bytes]"] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def places(self, ingredient: Ingredient | None = None) -> dict[str, str]:
        found = {"data": str(self.data), "work": str(self.work)}
        return found if ingredient is None else found | {"prepared": str(self._prepared(ingredient))}

    def prepare(self, recipe: Recipe) -> float:
        """Runs the commands of the recipe's ingredients that have not run yet; returns the seconds that all took."""
        return sum(self._prepare(one) for one in recipe.ingredients if one.prepare)

    def step_cost(self, recipe: Recipe) -> dict[str, float]:
        """Seconds and FLOPs of a step: of the runs so far if there are any, else of a short run."""
        done = [read_costs(path)[-1] for path in self.work.glob(f"runs/{_folder(recipe)}-*/done/cost.jsonl")]
        if done:
            steps = sum(row["step"] for row in done)
            return {name: sum(row[name] for row in done) / steps for name in UNITS.values()}
        folder = self.work / "calibrated" / _folder(recipe)
        if not (folder / "step.json").exists():
            shutil.rmtree(folder, ignore_errors=True)  # half of a short run tells nothing
            core = own_cores()[0] if self.ladder.clock == "cpu" else None
            self.run_job(self._job(folder, recipe, seed=0, steps=self.calibration_steps, core=core, calibrates=True))
        found: dict[str, float] = json.loads((folder / "step.json").read_text())
        return found

    def train(self, planned: Planned, *, core: int | None) -> list[dict[str, object]]:
        """Trains and evaluates a run; returns its rows, one for each point.

        Raises:
            RunError: it failed.
            StoppedError: `stop` was called.
        """
        recipe, budget = planned.recipe, planned.budget
        folder = self.work / "runs" / f"{_folder(recipe)}-s{planned.seed}-{budget.value:g}{budget.unit}"
        if not (folder / "job.json").exists():
            unit = 1e12 if budget.unit == "TFLOP" else 1.0
            steps = max(1, round(budget.value * unit / self.step_cost(recipe)[UNITS[budget.unit]]))
        else:
            steps = json.loads((folder / "job.json").read_text())["steps"]
        if not (folder / "done").exists():
            self.run_job(self._job(folder, recipe, seed=planned.seed, steps=steps, core=core, calibrates=False))
            if self.ladder.suite:
                self._measure_suite(folder)
            (folder / "done").mkdir()
            (folder / "done" / "cost.jsonl").write_text((folder / "cost.jsonl").read_text())
        return list(self._rows(folder, planned, steps=steps))

    def stop(self) -> None:
        """Lets what runs save and end; nothing new begins."""
        self._stopping.set()
        with self._lock:
            for process in self._living:
                process.terminate()

    def _job(self, folder: Path, recipe: Recipe, *, seed: int, steps: int, core: int | None, calibrates: bool) -> Path:
        """Writes a job's file; returns its path."""
        ladder, every = self.ladder, -(-steps // self.ladder.points)
        own = [filled(text, self.places(), steps=steps) for text in ladder.set]
        for one in recipe.ingredients:
            own += [filled(text, self.places(one), steps=steps) for text in one.set]
        own += [f"run_dir={folder / 'run'}", f"seed={seed}", f"steps={steps}", "samples=null", "track.wandb=disabled"]
        own.append(f"checkpoint={{every_steps: {0 if calibrates else every}, every_minutes: 0, keep_last: 1}}")
        sets = {} if calibrates else ladder.evaluate
        for name, content in sets.items():
            described = {"every_steps": every, **content}
            own.append(f"evaluate.{name}={filled(write_yaml(described), self.places(), steps=steps)}")
        job = {
            "files": [
                str(ROOT / file) for file in (*ladder.base, *(f for one in recipe.ingredients for f in one.files))
            ],
            "overrides": own,
            "evaluate": list(sets),
            "clock": ladder.clock,
            "trainer": recipe.trainer,
            "steps": steps,
            "core": core,
            "calibrates": calibrates,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(job, indent=1))
        return folder / "job.json"

    def run_job(self, job: Path) -> None:
        """Runs a job's process to its end."""
        trainer = json.loads(job.read_text())["trainer"]
        script = HERE / ("ladder_train.py" if trainer == "clipx" else f"ladder_{trainer}.py")
        self._call([*self._launcher(), str(script), str(job)], job.with_name("log.txt"))

    def _launcher(self) -> list[str]:
        """What comes before a script, or before -m: the interpreter, or what starts one on every GPU."""
        return [filled(text, self.places(), steps=1) for text in self.ladder.launch] or [sys.executable]

    def _call(self, command: Sequence[str], log: Path) -> None:
        """Runs a command; what it says goes to a file.

        Raises:
            RunError: it failed, or there is no such program.
            StoppedError: `stop` was called.
        """
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if self.ladder.clock == "cpu" else {})
        with log.open("ab") as said:
            before = said.tell()
            with self._lock:
                if self._stopping.is_set():
                    raise StoppedError
                try:
                    process = subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
                    )
                except OSError as error:
                    raise RunError(
                        f"{command[0]} cannot be started ({error.strerror}); launch and prepare of the ladder need "
                        "programs that are here, {python} is the interpreter"
                    ) from error
                self._living.add(process)
            try:
                code = process.wait()
            except KeyboardInterrupt:  # it saves; only seconds of a process that has ended are known
                process.terminate()
                process.wait()
                raise
            with self._lock:
                self._living.discard(process)
        if self._stopping.is_set() or code == AGAIN:
            raise StoppedError
        if code:
            lines = log.read_bytes()[before:].decode(errors="replace").strip().splitlines()
            said_why = [line for line in lines if _REASON.search(line)] or lines
            raise RunError(f"{log}: {shlex.join(command)} ended with {code}: {' '.join(said_why[-1:])}")

    def _prepared(self, ingredient: Ingredient) -> Path:
        content = json.dumps([ingredient.prepare, str(self.data)])
        return self.work / "prepared" / f"{ingredient.name}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"

    def _prepare(self, ingredient: Ingredient) -> float:
        """Seconds of an ingredient's commands over all starts; after a stop all are called again."""
        folder = self._prepared(ingredient)
        done = folder.with_name(f"{folder.name}.json")
        log = folder.with_name(f"{folder.name}.txt")
        spent = done.with_suffix(".unfinished.json")
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            before = json.loads(spent.read_text())["seconds"] if spent.exists() else 0.0
            began = self._clock()
            for text in ingredient.prepare:
                try:
                    self._call(shlex.split(filled(text, self.places(ingredient), steps=1)), log)
                finally:
                    spent.write_text(json.dumps({"seconds": before + self._clock() - began}))
            spent.replace(done)
        return json.loads(done.read_text())["seconds"]

    def _clock(self) -> float:
        """Seconds of the processes that have ended, or of the clock."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime if self.ladder.clock == "cpu" else time.perf_counter()

    def _measure_suite(self, folder: Path) -> None:
        suite, out = self.ladder.suite, folder / "suite.json"
        root = filled(suite["data_root"], self.places(), steps=1)
        command = [*self._launcher(), "-m", "clipx", "zeroshot", str(folder / "run"), "--suite", suite["name"]]
        command += ["--data-root", root, "--skip-missing", "--resamples", "0", "--json", str(out)]
        self._call(command, folder / "suite.txt")

    def _rows(self, folder: Path, planned: Planned, *, steps: int) -> Iterator[dict[str, object]]:
        recipe, prepare_s = planned.recipe, self.prepare(planned.recipe)
        wanted = {name for figure in self.ladder.figures for name in (figure.choose, figure.report) if name}
        points = {row["step"]: row for row in read_costs(folder / "cost.jsonl")}
        for step, cost in sorted(points.items()):
            values = _values(folder, step, wanted, last=step == steps)
            if values or step == steps:
                yield {
                    "recipe": recipe.name,
                    "fingerprint": recipe.fingerprint,
                    "ingredients": " ".join(one.name for one in recipe.ingredients),
                    "clock": self.ladder.clock,
                    "budget": planned.budget.value,
                    "unit": planned.budget.unit,
                    "seed": planned.seed,
                    "steps": steps,
                    "step": step,
                    "train_s": cost["train_s"],
                    "tflop": cost["flops"] / 1e12,
                    "prepare_s": prepare_s,
                    **values,
                }


def _values(folder: Path, step: int, wanted: set[str], *, last: bool) -> dict[str, float]:
    """The figures of a step by SET.METRIC, those that there are; with an average of the weights, those of the average.

    With figures of the suite comes `suite.sets`: how many sets there were, the mean is theirs.
    """
    found: dict[str, float | None] = {}
    for name in sorted(wanted):
        evaluation, _, metric = name.partition(".")
        path = folder / "run" / "eval" / f"{evaluation}-{step:08d}.json"
        if evaluation == "suite" and last:
            (scores,) = json.loads((folder / "suite.json").read_text()).values()
            found["suite.sets"] = scores["mean"]["sets"]
            is_mean = metric == "mean"
            found[name] = scores["mean"]["figure"] if is_mean else scores["sets"].get(metric, {}).get("main_figure")
        elif path.exists():
            scores = json.loads(path.read_text())
            found[name] = scores.get(f"ema_{metric}", scores.get(metric))
    return {name: value for name, value in found.items() if value is not None}


def _folder(recipe: Recipe) -> str:
    return f"{recipe.name}-{recipe.fingerprint}"


def own_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))
