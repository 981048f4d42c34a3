"""Processes that are killed: the run goes on from its last checkpoint, as if nothing had happened."""

import random
from pathlib import Path

import pytest
from faults.harness import EVERY, STEPS, Scenario

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 20))]


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_9_of_all_ranks_at_a_random_step(scenario: Scenario, seed: int) -> None:
    scenario.world_size = 2
    gate = scenario.gate(random.Random(seed).randrange(1, STEPS), rank=seed % 2)
    job = scenario.start(faults=[gate])
    gate.wait(job)
    job.kill()
    assert job.wait() == [-9, -9]
    scenario.recover(outcome="went on from the last checkpoint")
    assert scenario.row["lost"] < EVERY
    scenario.assert_as_undisturbed()


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp2", marks=pytest.mark.full)])
def test_kill_9_of_all_ranks_under_muon(scenario: Scenario, parallel: str) -> None:
    """Its matrices are computed on one rank each, and momentum is in every checkpoint."""
    scenario.world_size = 2
    scenario.options = ("optim={type: muon, lr: 0.01, warmup_steps: 2}", f"parallel.type={parallel}")
    gate = scenario.gate(7, rank=1)
    job = scenario.start(faults=[gate])
    gate.wait(job)
    job.kill()
    assert job.wait() == [-9, -9]
    scenario.recover(outcome="went on from the last checkpoint")
    assert 0 < scenario.row["lost"] < EVERY
    scenario.assert_as_undisturbed()


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_9_of_one_rank_at_a_random_step(scenario: Scenario, seed: int) -> None:
    scenario.world_size = 2
    victim = (seed + 1) % 2
    gate = scenario.gate(random.Random(seed).randrange(1, STEPS), rank=victim)
    job = scenario.start(faults=[gate])
    gate.wait(job)
    job.kill(victim)
    codes = job.wait()
    assert (codes.pop(victim), codes) == (-9, [1])
    (line,) = job.errors
    assert f"[rank {1 - victim}] lost contact with another process, whose own message says why" in line
    assert scenario.status["status"] == "failed"
    scenario.recover(outcome="the other rank ended; went on from the last checkpoint")
    assert scenario.row["lost"] < EVERY
    scenario.assert_as_undisturbed()


def test_kill_9_between_a_save_and_its_evaluation(scenario: Scenario, scenes: Path) -> None:
    evaluated(scenario, scenes)
    job = scenario.start(faults=[("die_at_file_event", {"part": "wds_scenes", "after": ".saving-step-00000008"})])
    assert job.wait() == [-9]
    assert scenario.checkpoints == [4, 8]
    assert evaluations(scenario.run_dir).keys() == {"scenes-00000004.json"}
    scenario.recover(outcome="evaluated after the restart, no step lost")
    assert scenario.row["lost"] == 0
    scenario.assert_as_undisturbed()
    assert evaluations(scenario.run_dir) == evaluations(scenario.undisturbed.run_dir(1, scenario.options))


@pytest.mark.full
def test_kill_9_while_evaluating(scenario: Scenario, scenes: Path) -> None:
    evaluated(scenario, scenes)
    job = scenario.start(faults=[("die_at_file_event", {"part": ".scenes-00000008.json"})])
    assert job.wait() == [-9]
    scenario.recover(outcome="evaluated after the restart, no step lost")
    assert scenario.row["lost"] == 0
    scenario.assert_as_undisturbed()
    assert evaluations(scenario.run_dir) == evaluations(scenario.undisturbed.run_dir(1, scenario.options))


def evaluated(scenario: Scenario, scenes: Path) -> None:
    scenario.options = (f"evaluate.scenes={{type: zeroshot, data: {scenes / 'wds_scenes'}, every_steps: 4}}",)


def evaluations(run_dir: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (run_dir / "eval").iterdir()}
