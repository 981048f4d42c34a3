"""Disks that are full, read-only or gone: the run says so, goes on where it can, and loses no good checkpoint."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import STEPS, Scenario
from faults.processes import wait_until
from tiny import metrics

Mount = Callable[..., None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts by the arguments of mount(8), the last of which is the place; undone at the end."""
    places: list[str] = []

    def do(*arguments: object) -> None:
        words = [str(argument) for argument in arguments]
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
        if "remount" not in str(arguments):
            places.append(words[-1])

    yield do
    for place in reversed(places):
        subprocess.run(["umount", "-l", place], check=True)


def fill(folder: Path, *, but: int) -> Path:
    """Takes all space but so many bytes."""
    file = folder / "filler"
    with file.open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(1 << 16)):
                pass
        except OSError:
            filler.truncate(filler.tell() - but)
    return file


def test_a_disk_that_is_full_for_a_while(scenario: Scenario, mount: Mount) -> None:
    scenario.run_dir.mkdir()
    mount("-t", "tmpfs", "-o", "size=128m", "tmpfs", scenario.run_dir)
    gates = [scenario.gate(6), scenario.gate(10)]
    job = scenario.start(faults=gates)
    gates[0].wait(job)
    filler = fill(scenario.run_dir, but=100_000)
    gates[0].open()
    gates[1].wait(job)
    wait_until(lambda: "CHECKPOINT OF STEP 8 FAILED" in job.text or job.ended, "the word of a failed save")
    assert "No space left on device" in job.text
    assert scenario.checkpoints == [4]
    filler.unlink()
    gates[1].open()
    assert job.wait() == [0], job.text
    scenario.report("said so and went on; the next save was good", lost=0)
    scenario.assert_as_undisturbed()


def test_a_disk_without_a_byte_left(scenario: Scenario, mount: Mount) -> None:
    scenario.run_dir.mkdir()
    mount("-t", "tmpfs", "-o", "size=128m", "tmpfs", scenario.run_dir)
    gate = scenario.gate(6)
    job = scenario.start(faults=[gate])
    gate.wait(job)
    filler = fill(scenario.run_dir, but=0)
    gate.open()
    assert job.wait() == [1]
    (line,) = job.errors
    assert "the newest good one is step 4: free space and start again" in line
    assert "metrics.jsonl" in job.text  # the rows that are lost, loudly
    filler.unlink()
    scenario.recover(outcome="ended with the reason; went on from the last good one", reached=STEPS)
    scenario.assert_as_undisturbed()


def test_metrics_that_cannot_be_written(scenario: Scenario, mount: Mount) -> None:
    gate = scenario.gate(6)
    job = scenario.start(faults=[gate])
    gate.wait(job)
    rows = scenario.run_dir / "metrics.jsonl"
    mount("--bind", rows, rows)
    mount("-o", "remount,ro,bind", rows)
    gate.open()
    assert job.wait() == [0], job.text
    assert f"cannot write {rows}" in job.text
    assert len(metrics(scenario.run_dir)) < STEPS
    assert scenario.checkpoints[-1] == STEPS
    scenario.report("said so; the run goes on without these rows", lost=0)


def test_a_run_folder_that_cannot_be_written(scenario: Scenario, mount: Mount) -> None:
    scenario.run_dir.mkdir()
    mount("-t", "tmpfs", "-o", "ro", "tmpfs", scenario.run_dir)
    job = scenario.start()
    assert job.wait() == [2]
    (line,) = job.errors
    assert f"run_dir={scenario.run_dir} cannot be used" in line
    scenario.report("bad input, with the folder and the reason")


def test_a_folder_that_becomes_read_only(scenario: Scenario, mount: Mount) -> None:
    gate = scenario.gate(6)
    job = scenario.start(faults=[gate])
    gate.wait(job)
    mount("--bind", scenario.run_dir, scenario.run_dir)
    mount("-o", "remount,ro,bind", scenario.run_dir)
    gate.open()
    assert job.wait() == [1]
    (line,) = job.errors
    assert "the newest good one is step 4" in line
    assert scenario.checkpoints == [4]
    mount("-o", "remount,rw,bind", scenario.run_dir)
    scenario.recover(outcome="ended with the reason; went on from the last good one", reached=STEPS)
    scenario.assert_as_undisturbed()
