"""Ranks that are stuck or never come, launchers that die, and runs that meet in one folder."""

import os
import signal
import time

from faults.harness import AGAIN, Scenario
from faults.processes import descendants

STALL = "stall_timeout_s=3"
RUN_LOCK = "clipx.train.liveness.run_lock"


def test_a_rank_that_is_stopped(scenario: Scenario) -> None:
    scenario.world_size = 2
    gate = scenario.gate(8, rank=1)
    job = scenario.start(STALL, faults=[gate])
    gate.wait(job)
    job.send(signal.SIGSTOP, 1)
    gate.open()
    began = time.monotonic()
    assert job.ranks[0].wait(timeout_s=40) == 1
    seconds = time.monotonic() - began
    assert "rank 1" in job.ranks[0].text
    assert "most recent call first" in job.text
    job.send(signal.SIGCONT, 1)
    assert job.wait()[1] not in (0, AGAIN)
    assert scenario.status["status"] == "failed"
    scenario.recover(outcome=f"named, with all stacks, and ended after {seconds:.0f} s (limit 3 s); went on")
    scenario.assert_as_undisturbed()


def test_a_read_that_hangs(scenario: Scenario) -> None:
    scenario.world_size = 2
    gate = scenario.gate(8, rank=1)
    job = scenario.start(STALL, "data.workers=1", faults=[gate])
    gate.wait(job)
    (loader,) = descendants(job.ranks[1].pid)
    os.kill(loader, signal.SIGSTOP)
    gate.open()
    assert job.wait(timeout_s=40) == [1, 1]
    assert "rank 1" in job.ranks[0].text
    assert "waiting for the data of step" in job.text
    scenario.recover("data.workers=1", outcome="named as waiting for data, and ended; went on")
    scenario.assert_as_undisturbed()


def test_a_rank_that_never_comes(scenario: Scenario) -> None:
    scenario.world_size = 2
    job = scenario.start("parallel.timeout_s=3", faults=[("die_at_start", {"rank": 1})])
    assert job.wait() == [1, 3]
    line = job.errors[-1]
    assert "[rank 0] not all 2 processes met within parallel.timeout_s=3" in line
    scenario.recover(outcome="ended with the reason; the next start is the first")
    scenario.assert_as_undisturbed()


def test_another_number_of_ranks_at_resume(scenario: Scenario) -> None:
    for world_size, step in ((1, 5), (2, 9)):
        scenario.world_size = world_size
        gate = scenario.gate(step)
        job = scenario.start(faults=[gate])
        gate.wait(job)
        job.kill()
        job.wait()
    scenario.world_size = 1
    scenario.recover(outcome="1, then 2, then 1 rank: the same losses to rounding")
    scenario.assert_nearly_undisturbed(tolerance=1e-4)


def test_two_runs_in_one_folder(scenario: Scenario) -> None:
    gate = scenario.gate(6)
    first = scenario.start(faults=[gate])
    gate.wait(first)
    second = scenario.start(faults=[("replace_constant", {"module": RUN_LOCK, "name": "_WAIT_S", "value": 1.0})])
    assert second.wait() == [2]
    (line,) = second.errors
    assert f"run_dir={scenario.run_dir} is in use by process {first.ranks[0].pid} on " in line
    assert not (scenario.run_dir / "status.json").exists()
    gate.open()
    assert first.wait() == [0]
    scenario.report("the second waited, then named the first, which went on", lost=0)
    scenario.assert_as_undisturbed()
