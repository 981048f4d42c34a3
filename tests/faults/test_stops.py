"""Requests to stop: all ranks save the same step and end as `again`; the next start loses nothing."""

import signal
import time
from signal import SIGINT, SIGTERM, SIGUSR1, SIGUSR2

import pytest
from faults.harness import AGAIN, STEPS, Job, Scenario

full = pytest.mark.full


def assert_stopped(scenario: Scenario, job: Job, *, reason: str) -> None:
    """Saved where it stands, said so, and lost nothing; then ends as the undisturbed run."""
    assert job.wait() == [AGAIN] * scenario.world_size, job.text
    assert job.errors == []
    said = scenario.status
    assert (said["status"], said["reason"]) == ("again", reason)
    assert scenario.checkpoints[-1] == said["step"] == scenario.last_row < STEPS
    scenario.recover(outcome=f"saved step {said['step']}, went on there")
    assert scenario.row["lost"] == 0
    scenario.assert_as_undisturbed()


@pytest.mark.parametrize(
    ("number", "ranks"),
    [
        (SIGTERM, (0, 1)),
        pytest.param(SIGUSR1, (0, 1), marks=full),
        pytest.param(SIGTERM, (0,), marks=full),
        pytest.param(SIGUSR1, (0,), marks=full),
    ],
)
def test_a_signal(scenario: Scenario, number: signal.Signals, ranks: tuple[int, ...]) -> None:
    scenario.world_size = 2
    gate = scenario.gate(6)
    job = scenario.start(faults=[gate])
    gate.wait(job)
    job.send(number, *ranks)
    gate.open()
    assert_stopped(scenario, job, reason=number.name)


def test_a_signal_at_the_other_rank(scenario: Scenario) -> None:
    scenario.world_size = 2
    gate = scenario.gate(6)
    job = scenario.start(faults=[gate])
    gate.wait(job)
    job.send(SIGUSR1, 1)
    gate.open()
    assert_stopped(scenario, job, reason="a stop signal at another process")


@pytest.mark.parametrize("background", [False, pytest.param(True, marks=full)])
def test_three_more_signals_during_the_save(scenario: Scenario, background: bool) -> None:
    gates = [scenario.gate(6), scenario.gate_at_file("checkpoints/.saving", nth=3)]
    job = scenario.start("checkpoint.every_steps=0", f"checkpoint.async_save={background}", faults=gates)
    gates[0].wait(job)
    job.send(SIGTERM)
    gates[0].open()
    gates[1].wait(job)
    for number in (SIGTERM, SIGUSR1, SIGTERM):
        job.send(number)
    gates[1].open()
    assert_stopped(scenario, job, reason="SIGTERM")


def test_ctrl_c(scenario: Scenario) -> None:
    gate = scenario.gate(6)
    job = scenario.start(faults=[gate])
    gate.wait(job)
    job.send(SIGINT)
    gate.open()
    assert_stopped(scenario, job, reason="SIGINT")


@full
def test_a_signal_of_ones_own(scenario: Scenario) -> None:
    gate = scenario.gate(6)
    job = scenario.start("stop_signals=[SIGUSR2]", faults=[gate])
    gate.wait(job)
    job.send(SIGUSR2)
    gate.open()
    assert_stopped(scenario, job, reason="SIGUSR2")


def test_a_stop_file(scenario: Scenario) -> None:
    scenario.world_size = 2
    gate = scenario.gate(6)
    job = scenario.start(faults=[gate])
    gate.wait(job)
    (scenario.run_dir / "STOP").touch()
    time.sleep(1.1)  # the run looks about once a second
    gate.open()
    assert_stopped(scenario, job, reason="the file STOP")
    assert not (scenario.run_dir / "STOP").exists()


def test_the_time_is_up(scenario: Scenario) -> None:
    scenario.world_size = 2
    job = scenario.start("max_minutes=0.001")
    assert_stopped(scenario, job, reason="max_minutes=0.001")
