"""Under launch/torchrun.sh: what becomes of the ranks when the launcher is asked to stop, or dies."""

import os
import signal
from pathlib import Path

import pytest
from faults.harness import AGAIN, Gate, Job, Scenario
from faults.processes import descendants, still_run, wait_until

SLOW_START_S = 240  # three interpreters import torch one after the other, each on a busy machine


def launched(scenario: Scenario) -> tuple[Job, Gate]:
    """Two ranks that stand before step 6."""
    scenario.world_size = 2
    gate = scenario.gate(6)
    job = scenario.launch(faults=[gate])
    gate.wait(job, timeout_s=SLOW_START_S)
    return job, gate


@pytest.mark.full
def test_the_launcher_is_killed(scenario: Scenario) -> None:
    job, gate = launched(scenario)
    running = descendants(job.ranks[0].pid)
    agent = min(pid for pid in running if b"torch.distributed.run" in Path(f"/proc/{pid}/cmdline").read_bytes())
    ranks = descendants(agent)
    assert len(ranks) >= 2
    os.kill(agent, signal.SIGKILL)
    gate.open()
    wait_until(lambda: not still_run(ranks), "the end of its ranks", timeout_s=30)
    assert job.wait()[0] not in (0, AGAIN)
    assert scenario.status["status"] == "again"
    scenario.recover(outcome="its ranks saved and ended; went on there")
    assert scenario.row["lost"] == 0
    scenario.assert_as_undisturbed()


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_launcher_is_asked_to_stop(scenario: Scenario, number: signal.Signals) -> None:
    job, gate = launched(scenario)
    job.send(number)
    gate.open()
    assert job.wait() == [AGAIN], job.text
    said = scenario.status
    assert said["status"] == "again"
    assert scenario.checkpoints[-1] == said["step"]
    assert scenario.launch().wait(timeout_s=SLOW_START_S) == [0]
    scenario.report(f"saved step {said['step']}, went on there", lost=0)
    scenario.assert_as_undisturbed()


@pytest.mark.full
def test_a_rank_dies_and_torchrun_starts_all_again(scenario: Scenario) -> None:
    scenario.world_size = 2
    fault = ("die_at_file_event", {"part": "step-00000008", "nth": 2, "rank": 1})
    job = scenario.launch(faults=[fault], MAX_RESTARTS="1")
    # rank 1 dies in this save each time
    assert job.wait(timeout_s=2 * SLOW_START_S) == [1], job.text
    assert job.text.count("resuming from") == 1
    scenario.report("started again from the last checkpoint, as often as it may")
