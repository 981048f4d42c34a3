"""A scenario: a run that something happens to, its next start, and what must hold after it.

A run with faults and its undisturbed twin have the same config and seed, so they must end with the same figures,
weights and moments: bit for bit on as many ranks, to rounding on another number.
"""

import re
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.processes import ROOT, Fault, Process, Starter, environment, free_port, wait_until
from shard_files import write_tar
from tiny import losses, saved_tensors, status, tiny_config

from clipx.checkpoint.store import CheckpointStore
from clipx.config.load import dump_config
from clipx.storage.json_rows import read_rows

STEPS, EVERY = 12, 4
AGAIN = 85


@dataclass
class Gate:
    """Where a process waits until the test lets it go on."""

    file: Path
    fault: Fault
    """What makes it wait."""

    def __post_init__(self) -> None:
        self.file.touch()

    def wait(self, job: "Job", *, timeout_s: float = 60) -> None:
        """Returns when the process stands there."""
        reached = self.file.with_name(f"{self.file.name}.reached")
        wait_until(lambda: reached.exists() or job.ended, str(self.fault), timeout_s=timeout_s)
        assert reached.exists(), job.text

    def open(self) -> None:
        """Lets it go on."""
        self.file.unlink()


@dataclass
class Job:
    """One start of a run: a process per rank."""

    ranks: list[Process]
    began: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> bool:
        """Whether any rank has."""
        return any(process.poll() is not None for process in self.ranks)

    @property
    def text(self) -> str:
        """What all ranks printed."""
        return "".join(process.text for process in self.ranks)

    @property
    def errors(self) -> list[str]:
        """Lines for a person, and tracebacks, which nobody should see."""
        return [line for line in self.text.splitlines() if "clipx: error:" in line or "Traceback" in line]

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """A signal to some ranks, or to all."""
        for rank in ranks or range(len(self.ranks)):
            self.ranks[rank].send(number)

    def kill(self, *ranks: int) -> None:
        """kill -9, of some ranks or of all."""
        self.send(signal.SIGKILL, *ranks)

    def wait(self, *, timeout_s: float = 60) -> list[int]:
        """Exit codes by rank."""
        return [process.wait(timeout_s=timeout_s) for process in self.ranks]


@dataclass
class Undisturbed:
    """Runs that nothing happened to, one for each set of options; shared by all scenarios of a session."""

    folder: Path
    scenes: Path
    starter: Starter
    _made: dict[tuple[int, tuple[str, ...]], Path] = field(default_factory=dict)

    def run_dir(self, world_size: int, options: tuple[str, ...]) -> Path:
        """The run folder."""
        key = (world_size, options)
        if key not in self._made:
            folder = self.folder / str(len(self._made))
            folder.mkdir()
            twin = Scenario(folder, self.scenes / "train", self.starter, self, world_size=world_size, options=options)
            job = twin.start()
            assert job.wait() == [0] * world_size, job.text
            self._made[key] = twin.run_dir
        return self._made[key]


@dataclass
class Scenario:
    """A run in `folder`, its data, and what is measured on it."""

    folder: Path
    shards: Path | str
    starter: Starter
    undisturbed: Undisturbed
    world_size: int = 1
    options: tuple[str, ...] = ()
    """Overrides that change what is computed; the undisturbed twin has them too."""
    row: dict[str, Any] = field(default_factory=dict)
    """Of the table at the end of the session."""
    _starts: int = 0

    @property
    def run_dir(self) -> Path:
        """Where the run writes."""
        return self.folder / "run"

    @property
    def checkpoint_folder(self) -> Path:
        """Where its checkpoints are."""
        return self.run_dir / "checkpoints"

    @property
    def status(self) -> dict[str, Any]:
        """status.json."""
        return status(self.run_dir)

    @property
    def last_row(self) -> int:
        """The last step in metrics.jsonl; 0 before the first."""
        rows = read_rows(self.run_dir / "metrics.jsonl")
        return rows[-1]["step"] if rows else 0

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the whole ones."""
        return [each.step for each in CheckpointStore(self.checkpoint_folder).checkpoints() if each.problem() is None]

    def gate(self, step: int, *, rank: int = 0) -> Gate:
        """Before a step of a rank; to be handed to `start`."""
        file = self.folder / f"gate-{step}-{rank}-{self._starts}"
        return Gate(file, ("hold_at_step", {"step": step, "gate": str(file), "rank": rank}))

    def gate_at_file(self, part: str, *, nth: int = 1, rank: int = 0) -> Gate:
        """At the n-th time that a rank touches a path with `part` in it; to be handed to `start`."""
        file = self.folder / f"gate-file-{rank}-{self._starts}"
        return Gate(file, ("hold_at_file_event", {"gate": str(file), "part": part, "nth": nth, "rank": rank}))

    def write_config(self, *overrides: str) -> Path:
        """The file that every start of the run is given."""
        config = tiny_config(
            self.run_dir,
            self.shards,
            f"steps={STEPS}",
            f"micro_batch_size={24 // self.world_size}",
            f"checkpoint.every_steps={EVERY}",
            "model.text.width=16",  # most of a checkpoint is the vocabulary
            *self.options,
            *overrides,
        )
        file = self.folder / "config.yaml"
        file.write_text(dump_config(config))
        return file

    def start(self, *overrides: str, faults: Sequence[Fault | Gate] = (), **variables: str) -> Job:
        """`clipx train`, the same command each time but for the `overrides`, which must not change what is computed."""
        file = self.write_config(*overrides)
        self._starts += 1
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(self.world_size)}
        processes = []
        for rank in range(self.world_size):
            launched = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if self.world_size > 1 else {}
            log = self.folder / f"log-{self._starts}-{rank}.txt"
            given = environment(_plain(faults), **launched, **variables)
            processes.append(self.starter.warm(["train", str(file)], log, given))
        return Job(processes)

    def launch(self, *overrides: str, faults: Sequence[Fault | Gate] = (), **variables: str) -> Job:
        """The same by launch/torchrun.sh, as a person starts it; its one process here is the script."""
        file = self.write_config(*overrides)
        self._starts += 1
        command = [str(ROOT / "launch" / "torchrun.sh"), str(file)]
        launched = {"PYTHON": sys.executable, "NPROC_PER_NODE": str(self.world_size)}
        log = self.folder / f"log-{self._starts}.txt"
        return Job([self.starter.cold(command, log, environment(_plain(faults), **launched, **variables))])

    def recover(
        self, *overrides: str, outcome: str, reached: int | None = None, variables: Mapping[str, str] | None = None
    ) -> Job:
        """Starts the run again, which must complete; measures the way back to where it was, for the table.

        Args:
            overrides: as of `start`.
            outcome: for a person, of the fault.
            reached: the step where it was; none: as metrics.jsonl says.
            variables: of the environment.
        """
        file = self.run_dir / "metrics.jsonl"
        reached = reached or self.last_row
        before = file.stat().st_ino if file.exists() else 0
        job = self.start(*overrides, **(variables or {}))

        def is_back() -> bool:
            return file.exists() and file.stat().st_ino != before and self.last_row >= reached

        wait_until(lambda: is_back() or job.ended, f"step {reached} again")
        seconds = time.monotonic() - job.began
        assert job.wait() == [0] * self.world_size, job.text
        resumed = re.search(r"resuming from \S*step-(\d+)", job.text)
        lost = reached - (int(resumed[1]) if resumed else 0)
        self.report(outcome, lost=lost, seconds=seconds)
        return job

    def report(self, outcome: str, *, lost: int | None = None, seconds: float | None = None) -> None:
        """The row of the table."""
        self.row |= {"outcome": outcome, "lost": lost, "seconds": seconds}

    def assert_as_undisturbed(self) -> None:
        """Every loss, weight and moment bit for bit, and nothing unfinished in the folder."""
        twin = self.undisturbed.run_dir(self.world_size, self.options)
        assert losses(self.run_dir) == losses(twin)
        ours, theirs = self._tensors(self.run_dir), self._tensors(twin)
        assert ours.keys() == theirs.keys()
        assert len(ours) > 30
        assert [name for name in ours if not ours[name].equal(theirs[name])] == []
        assert self.status == {"status": "complete", "step": STEPS, "reason": "all steps done"}
        assert list(self.checkpoint_folder.glob(".*")) == []

    def assert_nearly_undisturbed(self, *, tolerance: float) -> None:
        """Losses to rounding: the run changed its number of ranks on the way."""
        twin = losses(self.undisturbed.run_dir(1, self.options))
        assert len(losses(self.run_dir)) == STEPS
        assert max(abs(ours - theirs) for ours, theirs in zip(losses(self.run_dir), twin, strict=True)) < tolerance

    def _tensors(self, run_dir: Path) -> dict[str, Any]:
        newest = CheckpointStore(run_dir / "checkpoints").newest()
        assert newest is not None
        assert newest.step == STEPS
        assert newest.folder.path is not None
        found = saved_tensors(newest.folder.path, self.folder / "scratch")
        shutil.rmtree(self.folder / "scratch")
        return found


def _plain(faults: Sequence[Fault | Gate]) -> list[Fault]:
    return [fault.fault if isinstance(fault, Gate) else fault for fault in faults]


def corrupt(folder: Path, *, one_in: int) -> int:
    """Puts noise in the place of some pictures; returns how many."""
    number = bad = 0
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        for at, (name, content) in enumerate(members):
            if not name.endswith((".txt", ".cls", ".json")):
                number += 1
                if number % one_in == 0:
                    members[at] = (name, bytes(len(content)))
                    bad += 1
        write_tar(path, members)
    return bad
