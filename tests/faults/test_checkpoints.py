"""Checkpoints that are broken, half written, or cannot be written: no good one is lost, none that is bad is used."""

import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from faults.harness import EVERY, STEPS, Job, Scenario
from faults.processes import Fault, wait_until
from tiny import losses

full = pytest.mark.full
FILE_EVENTS = [2, *(pytest.param(nth, marks=full) for nth in (1, *range(3, 13)))]
SIZES = [1_000_000, *(pytest.param(size, marks=full) for size in (30_000, 5_000_000, 9_000_000))]
in_background = pytest.mark.parametrize("background", [True, pytest.param(False, marks=full)])


def start(scenario: Scenario, *faults: Fault, background: bool, overrides: Sequence[str] = ()) -> Job:
    """A run whose faults may begin in step 8, once its first checkpoint is there."""
    gate = scenario.gate(8)
    job = scenario.start(f"checkpoint.async_save={background}", *overrides, faults=[*faults, gate])
    gate.wait(job)
    wait_until(lambda: scenario.checkpoints == [4], "the first checkpoint")
    gate.open()
    return job


@in_background
@pytest.mark.parametrize("nth", FILE_EVENTS)
def test_kill_9_at_a_file_operation_of_a_save(scenario: Scenario, nth: int, background: bool) -> None:
    job = start(scenario, ("die_at_file_event", {"part": "step-00000008", "nth": nth}), background=background)
    assert job.wait() == [-9] or nth > 8  # then the save may take fewer operations
    assert set(scenario.checkpoints) <= {4, 8, 12}
    assert 4 in scenario.checkpoints
    scenario.recover(outcome="went on from the newest whole one")
    scenario.assert_as_undisturbed()


@in_background
@pytest.mark.parametrize("size", SIZES)
def test_kill_after_so_many_bytes_of_a_save(scenario: Scenario, size: int, background: bool) -> None:
    job = start(scenario, ("limit_file_size", {"step": 8, "size": size, "fatal": True}), background=background)
    assert job.wait() == [-signal.SIGXFSZ]
    assert scenario.checkpoints == [4]
    scenario.recover(outcome="went on from the one before")
    scenario.assert_as_undisturbed()


def test_kill_9_of_one_rank_during_a_save(scenario: Scenario) -> None:
    scenario.world_size = 2
    job = scenario.start(faults=[("die_at_file_event", {"part": "step-00000008", "nth": 2, "rank": 1})])
    codes = job.wait()
    assert codes[1] == -9
    assert codes[0] == 1
    assert scenario.checkpoints == [4]
    scenario.recover(outcome="the other rank ended; went on from the one before")
    scenario.assert_as_undisturbed()


def flip_a_byte(checkpoint: Path) -> None:
    largest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 3] ^= 4
    largest.write_bytes(content)


def truncate(checkpoint: Path) -> None:
    largest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


def remove_a_file(checkpoint: Path) -> None:
    max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size).unlink()


def remove_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def empty_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text("")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip_a_byte, "differs from its checksum"),
        (truncate, "bytes instead of"),
        (remove_a_file, "is missing"),
        (remove_the_manifest, "manifest.json"),
        pytest.param(empty_the_manifest, "manifest.json", marks=full),
    ],
)
def test_the_newest_is_damaged(scenario: Scenario, damage: Callable[[Path], None], named: str) -> None:
    shutil.copytree(scenario.undisturbed.run_dir(1, ()), scenario.run_dir)
    newest = scenario.checkpoint_folder / f"step-{STEPS:08d}"
    damage(newest)
    job = scenario.recover(outcome="passed over for the one before, with a warning")
    assert scenario.row["lost"] == EVERY
    (warning,) = [line for line in job.text.splitlines() if "is broken" in line]
    assert str(newest) in warning
    assert named in warning
    scenario.assert_as_undisturbed()


def test_all_are_damaged(scenario: Scenario) -> None:
    shutil.copytree(scenario.undisturbed.run_dir(1, ()), scenario.run_dir)
    for folder in scenario.checkpoint_folder.iterdir():
        truncate(folder)
    before = losses(scenario.run_dir)
    job = scenario.start()
    assert job.wait() == [1]
    (line,) = job.errors
    assert f"no checkpoint in {scenario.checkpoint_folder} is whole; move them away to start" in line
    assert losses(scenario.run_dir) == before
    shutil.rmtree(scenario.checkpoint_folder)
    scenario.recover(outcome="refused to start over; moved away, it does")
    scenario.assert_as_undisturbed()


@in_background
def test_a_save_that_fails_harms_no_older_one(scenario: Scenario, background: bool) -> None:
    fault = ("fail_at_file_event", {"part": "step-00000008", "nth": 3})
    job = start(scenario, fault, background=background, overrides=["checkpoint.keep_last=1"])
    assert job.wait() == [0], job.text
    assert "CHECKPOINT OF STEP 8 FAILED" in job.text
    assert "the newest good one is step 4" in job.text
    assert scenario.checkpoints == [12]
    scenario.report("said so and went on; the next save was good", lost=0)
    scenario.assert_as_undisturbed()


@in_background
def test_the_last_save_fails(scenario: Scenario, background: bool) -> None:
    job = start(scenario, ("limit_file_size", {"step": 8, "size": 1_000_000}), background=background)
    assert job.wait() == [1]
    (line,) = job.errors
    assert "step 12 ends the run" in line
    assert "the newest good one is step 4: free space and start again" in line
    assert scenario.status["status"] == "failed"
    assert scenario.checkpoints == [4]
    scenario.recover(outcome="ended with the reason; went on from the last good one")
    scenario.assert_as_undisturbed()
