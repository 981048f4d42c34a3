"""Shards and samples that are broken, gone or slow: counted and replaced, or the run ends with the reason."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.harness import Job, Scenario, corrupt
from faults.processes import descendants
from servers import WebServer
from tiny import metrics

from clipx.storage.json_rows import read_rows


@pytest.fixture
def web(scenes: Path) -> Iterator[WebServer]:
    with WebServer({path.name: path.read_bytes() for path in (scenes / "train").glob("*.tar")}) as server:
        yield server


def assert_failed(scenario: Scenario, job: Job, *parts: str) -> None:
    """Ended by itself with one line that has these parts, and with a whole checkpoint."""
    assert job.wait() == [1] * scenario.world_size, job.text
    own = [line for line in job.errors if "lost contact" not in line]
    assert len(own) == 1, job.text
    for part in parts:
        assert part in own[0]
    assert scenario.status["status"] == "failed"


def while_it_runs(scenario: Scenario, *overrides: str, step: int = 6) -> tuple[Job, Path]:
    """A run that stands before a step; the file to remove so that it goes on."""
    gate = scenario.gate(step)
    job = scenario.start(*overrides, faults=[gate])
    gate.wait(job)
    return job, gate.file


def test_a_shard_that_vanishes(scenario: Scenario, shards: Path) -> None:
    """The run reads one shard after the other, and has not opened the last ones yet."""
    scenario.options = ("data.lanes=1", "data.shuffle_window=4")
    job, gate = while_it_runs(scenario, step=2)
    for path in shards.glob("*.tar"):
        path.rename(path.with_suffix(".gone"))
    gate.unlink()
    assert_failed(scenario, job, f"shard {shards}/", "cannot be read after 3 tries", "No such file or directory")
    for path in shards.glob("*.gone"):
        path.rename(path.with_suffix(".tar"))
    scenario.recover(outcome="tried three times, ended with its name; with the shard back, it went on")
    scenario.assert_as_undisturbed()


def test_a_shard_that_is_gone_at_resume(scenario: Scenario, shards: Path) -> None:
    job, _ = while_it_runs(scenario)
    job.kill()
    job.wait()
    path = sorted(shards.glob("*.tar"))[1]
    path.rename(path.with_suffix(".gone"))
    refused = scenario.start()
    assert refused.wait() == [2]
    (line,) = refused.errors
    assert "the data order" in line
    assert "num_shards: 4 -> 3" in line
    assert "data.allow_change=true" in line
    path.with_suffix(".gone").rename(path)
    scenario.recover(outcome="refused, saying what changed; with the shard back, it went on")
    scenario.assert_as_undisturbed()


def test_a_changed_list_of_shards_that_is_allowed(scenario: Scenario, shards: Path) -> None:
    job, _ = while_it_runs(scenario)
    job.kill()
    job.wait()
    sorted(shards.glob("*.tar"))[1].unlink()
    resumed = scenario.recover("data.allow_change=true", outcome="goes on with the new data, with a warning")
    assert "going on with a changed data order" in resumed.text
    assert scenario.row["lost"] < 4


@pytest.mark.parametrize(
    ("kept", "reason"),
    [(0.5, "distinct samples are bad"), (0.0, "the shard was longer when it was indexed: restore it")],
    ids=["truncated", "empty"],
)
def test_shards_that_are(scenario: Scenario, shards: Path, kept: float, reason: str) -> None:
    job, gate = while_it_runs(scenario)
    whole = {path: path.read_bytes() for path in shards.glob("*.tar")}
    for path, content in whole.items():
        os.truncate(path, int(kept * len(content)))
    gate.unlink()
    assert_failed(scenario, job, reason)
    assert scenario.checkpoints[0] == 4
    for path, content in whole.items():
        path.write_bytes(content)
    scenario.recover(outcome="ended with the reason; with the shards mended, it went on")
    scenario.assert_as_undisturbed()


def test_a_shard_that_was_cut_before_the_run(scenario: Scenario, shards: Path) -> None:
    path = sorted(shards.glob("*.tar"))[1]
    os.truncate(path, path.stat().st_size // 2)
    job = scenario.start()
    assert job.wait() == [0]
    assert f"shard {path} ends inside a member" in job.text
    scenario.report("a warning that names it; what is whole is read", lost=0)


def test_a_slow_shard(scenario: Scenario, shards: Path) -> None:
    name = sorted(shards.glob("*.tar"))[1].name
    job = scenario.start(faults=[("slow_reads", {"part": name, "seconds": 0.02})])
    assert job.wait() == [0], job.text
    assert sum(row["data_wait_s"] for row in metrics(scenario.run_dir)) > 0.5
    scenario.report("slower, and data_wait_s says so", lost=0)
    scenario.assert_as_undisturbed()


def test_a_loader_that_is_killed(scenario: Scenario) -> None:
    scenario.world_size = 2
    gate = scenario.gate(6, rank=1)
    job = scenario.start("data.workers=2", faults=[gate])
    gate.wait(job)
    loaders = descendants(job.ranks[1].pid)
    assert len(loaders) == 2
    os.kill(min(loaders), signal.SIGKILL)
    gate.open()
    assert_failed(scenario, job, "[rank 1]", "a loader process died")
    scenario.recover("data.workers=2", outcome="all ranks ended with the reason; went on from the last checkpoint")
    scenario.assert_as_undisturbed()


def test_a_server_that_fails_twice(scenario: Scenario, web: WebServer) -> None:
    scenario.shards = "::".join(f"{web.url}/{name}" for name in sorted(web.files))
    remote = [f"data.index={scenario.folder / 'index'}", "data.remote.timeout_s=5", "data.shuffle_window=4"]
    scenario.options = ("data.shuffle_window=4",)
    job, gate = while_it_runs(scenario, *remote)
    asked, web.failures = len(web.requests), 2
    gate.unlink()
    assert job.wait() == [0], job.text
    assert web.failures == 0
    assert len(web.requests) > asked + 2
    scenario.report("asked again; nothing was lost", lost=0)
    scenario.assert_as_undisturbed()


def test_a_tenth_of_the_pictures_is_corrupt(scenario: Scenario, shards: Path) -> None:
    bad = corrupt(shards, one_in=10)
    job = scenario.start()
    assert_failed(scenario, job, "distinct samples are bad, more than data.max_bad_fraction=0.01; see")
    listed = read_rows(scenario.run_dir / "quarantine.jsonl")
    assert 1 < len(listed) <= bad
    raised = scenario.recover(
        "data.max_bad_fraction=0.2", outcome="ended with the list; allowed, it goes on and counts"
    )
    listed = read_rows(scenario.run_dir / "quarantine.jsonl")
    assert len(listed) == len({(row["shard"], row["key"]) for row in listed}) == bad, raised.text
    assert metrics(scenario.run_dir)[-1]["bad_samples"] == bad


def test_all_pictures_are_corrupt(scenario: Scenario, shards: Path) -> None:
    scenario.world_size = 2
    corrupt(shards, one_in=1)
    job = scenario.start()
    assert job.wait(timeout_s=30) == [1, 1]
    assert any("samples in a row is a readable pair" in line for line in job.errors)
    scenario.report("ended within seconds with the reason")
