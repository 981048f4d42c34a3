"""Steps that go wrong: skipped on all ranks together, counted, and the end of the run where they do not stop."""

import math

import pytest
from faults.harness import STEPS, Scenario
from tiny import losses, metrics

from clipx.storage.json_rows import read_rows

WATCHED = "spikes={z_score: 20, window: 8, leave_out: 1, max_rollbacks: 2}"


def test_nan_in_one_step_of_one_rank(scenario: Scenario) -> None:
    scenario.world_size = 2
    job = scenario.start(faults=[("spoil_embeddings", {"first": 5, "last": 5, "rank": 1})])
    assert job.wait() == [0, 0], job.text
    rows = metrics(scenario.run_dir)
    assert [row["step"] for row in rows if row["loss"] is None] == [6]
    assert [row["skipped_steps"] for row in rows] == [0] * 5 + [1] * (STEPS - 5)
    assert all(math.isfinite(row["loss"]) for row in rows if row["step"] != 6)
    assert scenario.checkpoints == [4, 8, 12]
    scenario.report("skipped on all ranks, and counted", lost=0)


def test_nan_from_a_step_on(scenario: Scenario) -> None:
    scenario.world_size = 2
    fault = ("spoil_embeddings", {"first": 5, "last": 99, "rank": 1})
    job = scenario.start("max_skipped_steps=4", faults=[fault])
    assert job.wait() == [1, 1]
    assert all("not finite in 4 steps in a row, up to step 9" in line for line in job.errors)
    assert all("the last checkpoint from before, step 4, is intact" in line for line in job.errors)
    assert scenario.status["status"] == "failed"
    assert scenario.checkpoints == [4]
    scenario.recover("max_skipped_steps=4", outcome="ended after max_skipped_steps; went on from before it")
    scenario.assert_as_undisturbed()


def test_a_learning_rate_of_a_million(scenario: Scenario) -> None:
    job = scenario.start("optim.lr=1e6", "optim.warmup_steps=0", "max_skipped_steps=4")
    assert job.wait() == [1]
    (line,) = job.errors
    assert "not finite in 4 steps in a row, up to step 5" in line
    assert "there is no checkpoint: lower optim.lr" in line
    assert scenario.checkpoints == []
    scenario.recover(outcome="ended after max_skipped_steps, and nothing bad was kept")
    scenario.assert_as_undisturbed()


def test_a_loss_spike(scenario: Scenario) -> None:
    scenario.options = (WATCHED,)
    spike = ("spoil_embeddings", {"first": 10, "last": 10, "factor": 30.0})
    job = scenario.start(faults=[spike])
    assert job.wait() == [0], job.text
    (record,) = read_rows(scenario.run_dir / "rollbacks.jsonl")
    assert (record["step"], record["back_to"], record["left_out"]) == (11, 8, [10])
    assert losses(scenario.run_dir)[:10] == losses(scenario.undisturbed.run_dir(1, scenario.options))[:10]
    assert max(losses(scenario.run_dir)[8:]) < 5
    scenario.report("back to the checkpoint before, without the batch, on record", lost=3)


@pytest.mark.full
def test_loss_spikes_that_do_not_end(scenario: Scenario) -> None:
    scenario.options = (WATCHED,)
    job = scenario.start(faults=[("spoil_embeddings", {"first": 10, "last": 99, "factor": 30.0})])
    assert job.wait() == [1], job.text
    (line,) = job.errors
    assert "after 2 rollbacks (spikes.max_rollbacks)" in line
    assert len(read_rows(scenario.run_dir / "rollbacks.jsonl")) == 2
    assert scenario.checkpoints[-1] == 8
    scenario.report("ended after max_rollbacks, with the record")
