"""The plan for the minutes in which a GPU is lent: most telling checks first, and none can cost another its time.

    python3 benchmarks/gpu_plan.py [--out FOLDER] [--rehearse] [--patience 1] [STEP ...]

Every step has a limit, and they sum to at most WHOLE_S. Steps run one after another in a worker process
(`gpu_worker.py`), which has imported everything before it is needed, and beside it a spare one waits. A worker whose
step fails, dies or outruns its limit is ended with all that it started, and the spare takes over at the next step: a
failure costs that step alone, and importing costs no step but the first. Rows are written at once, one JSON object a
line, to FOLDER/gpu_plan.jsonl; what workers print goes to FOLDER/gpu_plan.log. The last table says what was predicted
(`results/budget.csv`), what came, and their ratio.

`--rehearse` takes sizes at which a machine without a GPU, under a CUDA that computes nothing, runs every step in
minutes: it shows that no step dies of an API. Values mean nothing then and are not looked at.
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpu_report import Report, closing_table, read_rows

HERE = Path(__file__).parent
FILES = ("gpu_plan.jsonl", "gpu_plan.log", "gpu_table.txt", "gpu_tests.txt", "gpu_profile.txt")
"""What may lie in the folder afterwards; a lent machine gives back eight files."""
WHOLE_S = 480
"""Seconds of all steps together."""


@dataclass(frozen=True)
class Step:
    """A check with a limit."""

    name: str
    entry: str
    """MODULE:FUNCTION in this folder; takes a `gpu_report.Report`."""
    limit_s: float
    last_of_worker: bool = False
    """Whether it leaves settings behind that would change the steps after it."""
    essential: bool = False
    """Whether nothing after it can work if it fails; it may be late."""


STEPS = (
    # does it import, does every loss step, are kernels and towers right
    Step("start", "gpu_checks:start", 40, essential=True),
    Step("losses", "gpu_checks:losses", 12),
    Step("kernels", "gpu_checks:kernels", 25),
    Step("towers", "gpu_checks:towers", 15),
    # how fast is a step, alone
    Step("b32", "gpu_speed:b32", 20),
    Step("l14", "gpu_speed:l14", 25),
    Step("b32 compiled", "gpu_speed:b32_compiled", 40),
    Step("l14 compiled", "gpu_speed:l14_compiled", 40),
    # beside open_clip
    Step("b32 peer", "gpu_speed:b32_peer", 25),
    Step("l14 peer", "gpu_speed:l14_peer", 30),
    Step("b16 peer", "gpu_speed:b16_peer", 25),
    Step("loss", "gpu_speed:loss", 20),
    Step("cache", "gpu_speed:cache", 25),
    Step("run and tests", "gpu_runs:run_and_tests", 60),
    Step("ceilings", "gpu_checks:ceilings", 8),
    Step("attention", "gpu_checks:attention", 12),
    Step("waits", "gpu_runs:waits", 20, last_of_worker=True),
    Step("blocks", "gpu_speed:blocks", 25),
    Step("profile", "gpu_speed:profile", 12),
)


class Worker:
    """A process that runs steps by name, and is ended with everything it started.

    Args:
        report: says where rows and the log go.
        modules: imported before the first step.
    """

    def __init__(self, report: Report, *, modules: Sequence[str]) -> None:
        command = [sys.executable, "-u", str(HERE / "gpu_worker.py"), str(report.folder), *modules]
        with (report.folder / "gpu_plan.log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, *(["--rehearse"] if report.rehearse else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def run(self, step: Step, limit_s: float) -> str:
        """The outcome of a step: `ok`, or what went wrong; a worker that gave anything else must be ended."""
        assert self._process.stdin is not None
        began = time.monotonic()
        with suppress(BrokenPipeError):  # told by the end of its output
            order = {"step": step.name, "entry": step.entry, "limit_s": limit_s}
            self._process.stdin.write((json.dumps(order) + "\n").encode())
            self._process.stdin.flush()
        answer = self._line(began + limit_s)
        if answer is None:
            return f"stopped after {limit_s:.0f} s"
        if not answer:
            self._process.wait()
            return f"died with {self._process.returncode}"
        return answer

    def end(self) -> None:
        """Kills the process and all that it started, in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # one that hangs in the driver may not die at once
            self._process.wait(timeout=2)

    def _line(self, deadline: float) -> str | None:
        """The worker's next line, empty if it is at an end, None if it is late."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        return self._process.stdout.readline().decode().strip() if ready else None


def run_plan(steps: Sequence[Step], report: Report, *, patience: float = 1) -> Iterator[tuple[str, str]]:
    """Runs the steps, and says how each ended: its name, and `ok` or what went wrong.

    What earlier steps did not need of their limits is lent to a later one, up to as much again as its own.

    Args:
        steps: in order.
        report: takes the rows.
        patience: factor on all limits.
    """
    saved = 0.0
    workers = _workers(report, sorted({step.entry.partition(":")[0] for step in steps}))
    worker = next(workers)
    try:
        for step in steps:
            own, began = patience * step.limit_s, time.monotonic()
            outcome = worker.run(step, own + min(saved, own))
            seconds = time.monotonic() - began
            saved += own - seconds
            report.say(step=step.name, outcome=outcome, seconds=seconds)
            yield step.name, outcome
            if step.essential and outcome.startswith("failed"):
                break
            if outcome != "ok" or step.last_of_worker:
                worker = next(workers)
    finally:
        workers.close()


def _workers(report: Report, modules: Sequence[str]) -> Generator[Worker]:
    """Workers, one at a time: the one before is ended, and a spare is always being made ready."""
    worker, spare = None, Worker(report, modules=modules)
    try:
        while True:
            if worker is not None:
                worker.end()
            worker, spare = spare, Worker(report, modules=modules)
            yield worker
    finally:
        for process in (worker, spare):
            if process is not None:
                process.end()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every step ended well, 2 if none could run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu", help="folder of what is written")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, values are not looked at")
    parser.add_argument("--patience", type=float, default=1, help="factor on all limits")
    parser.add_argument("step", nargs="*", help="steps to run; default: all")
    arguments = parser.parse_args(argv)
    names = [step.name for step in STEPS]
    if unknown := [name for name in arguments.step if name not in names]:
        parser.error(f"no step {unknown[0]!r}; steps are {', '.join(names)}")
    given = filter(None, [os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *given])  # for workers and what they start
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (arguments.out / name).unlink(missing_ok=True)
    report = Report(arguments.out, rehearse=arguments.rehearse)
    chosen = [step for step in STEPS if not arguments.step or step.name in arguments.step]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a limit around it: the table still comes
    outcomes: dict[str, str] = {}
    try:
        for name, outcome in run_plan(chosen, report, patience=arguments.patience):
            outcomes[name] = outcome
    finally:
        text = closing_table(read_rows(arguments.out), outcomes, predictions=HERE / "results" / "budget.csv")
        (arguments.out / "gpu_table.txt").write_text(text)
        print(text, flush=True)
    if outcomes.get("start", "").startswith("failed"):
        print(f"nothing was run: {outcomes['start']}", file=sys.stderr)
        return 2
    return int(any(outcome != "ok" for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
