"""Which recipe learns most from the same compute: trains recipes in turns, and shows accuracy against compute.

    .venv/bin/python benchmarks/ladder.py benchmarks/ladder_photos.yaml --data DATA --work runs/ladder \\
        --seconds 1500 --quarter --seeds 3 --jobs 2

LADDER.yaml (ladder_spec.py) has the recipes. The first seed of all recipes comes before the second of any. A run's
length in steps is what its seconds (or --tflops) buy, by a short run of the recipe first; what it really took is in its
rows, in results/LADDER.csv beside the machine. Runs that have rows of this machine are skipped, so it may be stopped
(Ctrl-C saves what runs) and started again with the same command. Tables and curves show the half of the evaluation sets
that recipes are chosen by; --report NAME ... shows the other half, for recipes that are chosen.
"""

import argparse
import queue
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from harness import RESULTS, hardware, read_rows, write_rows
from ladder_jobs import Budget, Planned, StoppedError, Workshop, own_cores
from ladder_page import percent, write_summary
from ladder_spec import Ladder, Recipe, read_ladder
from ladder_splits import write_splits

from clipx.errors import ClipxError, InputError

Rows = list[dict[str, object]]

RECORD = "data.txt"
"""In the work folder: the data that it was made from."""


def chosen(ladder: Ladder, arguments: argparse.Namespace) -> list[Recipe]:
    """The recipes to train: --only, else those of the ablation with --ablate, else the others.

    Raises:
        InputError: --only or --report names one that is not there, or there is no ablation.
    """
    for name in [*arguments.only, *arguments.report]:
        if name not in ladder.recipes:
            raise InputError(f"no recipe is called {name}; there are {', '.join(ladder.recipes)}")
    if arguments.ablate and not ladder.ablation:
        raise InputError(f"--ablate: {ladder.name} has no `whole`, the ingredients to take away one by one")
    others = [name for name in ladder.recipes if not name.startswith(("only_", "without_"))]
    return [ladder.recipes[name] for name in arguments.only or (ladder.ablation if arguments.ablate else others)]


def in_turns(recipes: Sequence[Recipe], seeds: int, budgets: Sequence[Budget]) -> Iterator[Planned]:
    """All runs: by seed, and within it each recipe once by budget; another recipe begins each time."""
    seen: set[tuple[str, int, Budget]] = set()
    for seed in range(seeds):
        for turn, budget in enumerate(budgets):
            first = (seed + turn) % len(recipes)
            for recipe in [*recipes[first:], *recipes[:first]]:
                key = (recipe.fingerprint, seed, budget)
                if key not in seen:
                    seen.add(key)
                    yield Planned(recipe, seed, budget)


def is_done(planned: Planned, rows: Rows) -> bool:
    """Whether the rows of this machine have the run's last step."""
    wanted = (planned.recipe.fingerprint, str(planned.seed), f"{planned.budget.value:.6g}", planned.budget.unit)
    return any(
        tuple(str(row[name]) for name in ("fingerprint", "seed", "budget", "unit")) == wanted
        and row["step"] == row["steps"]
        for row in rows
    )


def require_same_data(work: Path, data: Path) -> None:
    """Looks what data the work folder was made from; rows and folders of runs do not tell data apart.

    Raises:
        InputError: it was other data.
    """
    record = work / RECORD
    if record.exists() and (made := record.read_text().strip()) != str(data.resolve()):
        raise InputError(
            f"--data {data}: the runs of --work {work} are of {made}, and those of other data would pass for them; "
            "give other data another --work and another --out"
        )


class Session:
    """The runs of one start of the program."""

    def __init__(self, workshop: Workshop, runs: Sequence[Planned], *, cores: Sequence[int | None], path: Path) -> None:
        self.workshop, self.runs, self.path = workshop, runs, path
        self._cores: queue.Queue[int | None] = queue.Queue()
        for core in cores:
            self._cores.put(core)
        self._jobs = len(cores)
        self._began = time.monotonic()
        self._done = 0.0
        self._number = 0

    def run(self) -> bool:
        """Does them; returns whether all succeeded. A run that fails is said, and costs the others nothing."""
        good = True
        with ThreadPoolExecutor(self._jobs) as pool:
            waiting: set[Future[None]] = {pool.submit(self._one, planned) for planned in self.runs}
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        if isinstance(error := future.exception(), ClipxError):
                            good = False
                            say(f"FAILED: {error}")
                        elif error is not None:
                            raise error
            except BaseException:
                for future in waiting:
                    future.cancel()
                self.workshop.stop()
                raise
        return good

    def _one(self, planned: Planned) -> None:
        core = self._cores.get()
        try:
            say(f"begins: {planned.name}")
            rows = self.workshop.train(planned, core=core)
        finally:
            self._cores.put(core)
        write_rows(self.path.stem, rows, self.path.parent)
        self._number += 1
        self._done += planned.budget.value
        last = rows[-1]
        figures = {figure.choose: figure.title for figure in self.workshop.ladder.figures if figure.choose}
        values = {title: percent(last, name) for name, title in figures.items()}
        reached = ", ".join(f"{title} {'none' if one is None else f'{one:.1f}'}" for title, one in values.items())
        say(f"{self._number} of {len(self.runs)}: {planned.name}: {last['steps']} steps took {last['train_s']:.0f} s; "
            f"{reached}{self._left()}")  # fmt: skip

    def _left(self) -> str:
        left = sum(planned.budget.value for planned in self.runs) - self._done
        seconds = (time.monotonic() - self._began) * left / self._done
        return f"; about {seconds / 3600:.1f} h left" if left else ""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ladder", type=Path, metavar="LADDER.yaml")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--seconds", type=float, help="of training in each run, by the ladder's clock")
    budget.add_argument("--tflops", type=float, help="10^12 FLOPs of each run, as the step counts them, instead")
    parser.add_argument("--quarter", action="store_true", help="also runs of a quarter of that")
    parser.add_argument("--seeds", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="{data} of the ladder (default: %(default)s)")
    parser.add_argument("--work", type=Path, required=True, help="folder of runs and pages; git should ignore it")
    parser.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help="these recipes")
    parser.add_argument("--ablate", action="store_true", help="each ingredient of `whole` alone, and each taken away")
    parser.add_argument("--report", nargs="+", default=[], metavar="RECIPE", help="show the other half of these")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at once, a core each; by the wall clock 1 (default: %(default)s)"
    )
    parser.add_argument("--calibration-steps", type=int, default=24, help="of the short runs (default: %(default)s)")
    parser.add_argument("--no-train", action="store_true", help="only tables and page, of the rows there are")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV file (default: %(default)s)")
    return parser.parse_args(argv)


def is_ready(workshop: Workshop, recipe: Recipe) -> bool:
    """Prepares a recipe and says what a step of it costs; whether that succeeded. It costs the others nothing."""
    try:
        prepare_s = workshop.prepare(recipe)
        cost = workshop.step_cost(recipe)
    except ClipxError as error:
        say(f"FAILED: {recipe.name} is left out: {error}")
        return False
    more = f"; preparing it took {prepare_s:.0f} s" if prepare_s else ""
    say(f"{recipe.name}: {cost['train_s']:.3f} s a step, {cost['flops'] / 1e12:.4f} TFLOP{more}")
    return True


def train(ladder: Ladder, arguments: argparse.Namespace, todo: Sequence[Planned], path: Path) -> bool:
    """Does what has no rows yet, after what all of it needs; returns whether all succeeded."""
    workshop = Workshop(ladder, arguments.work.absolute(), arguments.data.absolute(), arguments.calibration_steps)
    jobs = arguments.jobs
    if jobs < 1:
        raise InputError(f"--jobs {jobs} must be a number from 1 on")
    if ladder.clock == "wall" and jobs > 1:
        raise InputError(f"--jobs {jobs}: by clock=wall runs beside each other slow each other; leave --jobs out")
    if jobs > len(own_cores()):
        raise InputError(f"--jobs {jobs}: there are {len(own_cores())} cores; every run takes one")
    cores: Sequence[int | None] = own_cores()[:jobs] if ladder.clock == "cpu" else [None]
    try:
        write_splits(ladder.splits, workshop.work / "splits", data=workshop.data)
        ready = {recipe: is_ready(workshop, recipe) for recipe in dict.fromkeys(planned.recipe for planned in todo)}
        if ladder.splits or any(ready.values()):  # of a folder that was mistyped nothing was made
            (workshop.work / RECORD).write_text(f"{workshop.data.resolve()}\n")
        runs = [planned for planned in todo if ready[planned.recipe]]
        return Session(workshop, runs, cores=cores, path=path).run() and all(ready.values())
    except (KeyboardInterrupt, StoppedError):
        workshop.stop()
        say("stopped; the same command goes on")
        raise SystemExit(130) from None


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(1)  # it stands in the machine's description, by which rows are compared
    try:
        ladder = read_ladder(arguments.ladder)
        unit, value = ("TFLOP", arguments.tflops) if arguments.seconds is None else ("s", arguments.seconds)
        budgets = [Budget(value / 4, unit)] * arguments.quarter + [Budget(value, unit)]
        recipes, path = chosen(ladder, arguments), arguments.out / f"{ladder.name}.csv"
        if not arguments.no_train:
            require_same_data(arguments.work, arguments.data)
        machine = hardware()
        here = [row for row in read_rows(path)[1] if row["hardware"] == machine]
        runs = list(in_turns(recipes, arguments.seeds, budgets))
        todo = [planned for planned in runs if not is_done(planned, here)]
        good = True
        if todo and not arguments.no_train:
            say(f"{len(todo)} of {len(runs)} runs have no rows yet; {machine}")
            good = train(ladder, arguments, todo, path)
        here = [row for row in read_rows(path)[1] if row["hardware"] == machine]
        write_summary(ladder, recipes, budgets, here, arguments.work, report=arguments.report)
    except ClipxError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is as good as Ctrl-C
    main()
