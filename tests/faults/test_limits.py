"""Processes that run out of what the machine gives them, and services that die beside them."""

import os
import signal
from pathlib import Path

import pytest
from faults.harness import Scenario
from faults.processes import descendants


def test_no_more_open_files(scenario: Scenario) -> None:
    """All files that the run opens from step 6 on fail: its checkpoints, its metrics."""
    gate = scenario.gate(6)
    job = scenario.start(faults=[("limit", {"name": "NOFILE", "amount": 8, "step": 6}), gate])
    gate.wait(job)
    gate.open()
    assert job.wait() == [1], job.text
    assert "Too many open files" in job.text
    assert scenario.checkpoints == [4]
    scenario.recover(outcome="ended with the reason; went on from the last good one")
    scenario.assert_as_undisturbed()


@pytest.mark.full
def test_no_more_memory(scenario: Scenario) -> None:
    scenario.world_size = 2
    fault = ("exhaust_memory", {"step": 6, "rank": 1})
    job = scenario.start(faults=[fault])
    codes = job.wait()
    assert 0 not in codes
    assert any("[rank 1]" in line and "memory" in line for line in job.errors), job.text
    scenario.recover(outcome="all ranks ended with the reason; went on from the last checkpoint")
    scenario.assert_as_undisturbed()


@pytest.mark.full
def test_a_tracker_that_is_killed(scenario: Scenario) -> None:
    gate = scenario.gate(6)
    job = scenario.start("track.wandb=offline", faults=[gate])
    gate.wait(job)
    services = [
        pid for pid in descendants(job.ranks[0].pid) if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    for pid in services:
        os.kill(pid, signal.SIGKILL)
    gate.open()
    assert services
    assert job.wait() == [0], job.text
    scenario.report("said so; the run goes on without it", lost=0)
    scenario.assert_as_undisturbed()
