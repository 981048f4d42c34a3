"""A run that is killed and stopped for a long time, over data with bad samples: it ends as if nothing had happened.

CLIPX_SOAK_MINUTES says how long (default 20); the undisturbed twin takes a little less once more.
"""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from faults.harness import AGAIN, Job, Scenario, corrupt
from faults.processes import descendants, wait_until
from tiny import losses, metrics, saved_tensors

MINUTES = float(os.environ.get("CLIPX_SOAK_MINUTES", "20"))
OPTIONS = ("steps=1000000", "data.max_bad_fraction=0.1", "data.workers=1", "checkpoint.every_minutes=0")
MOST_GROWTH_MB = 2.0  # per 1,000 steps, of all processes of the run


def disturb(scenario: Scenario, rng: random.Random) -> str:
    """One start, and what ends it; returns what it was."""
    background = rng.choice(["true", "false"])
    job = scenario.start("checkpoint.every_steps=50", f"checkpoint.async_save={background}")
    alive_until = time.monotonic() + rng.uniform(4, 20)
    wait_until(lambda: job.ended or time.monotonic() > alive_until, "", timeout_s=60)
    assert not job.ended, job.text
    what = rng.choice(["kill -9 of one rank", "kill -9 of all", "SIGTERM of one rank"])
    if what == "kill -9 of all":
        job.kill()
    else:
        job.send(signal.SIGTERM if what.startswith("SIGTERM") else signal.SIGKILL, rng.randrange(2))
    codes = job.wait(timeout_s=60)
    if what.startswith("SIGTERM"):
        assert codes == [AGAIN, AGAIN], job.text
    else:
        assert -9 in codes
        assert set(codes) <= {-9, 1}, job.text
    return what


def anonymous_mb(job: Job) -> float:
    """Memory of the ranks and their loader processes that no file backs."""
    total = 0.0
    for pid in [each for rank in job.ranks for each in (rank.pid, *descendants(rank.pid))]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
    return total


def run_twin(twin: Scenario, last: int) -> list[tuple[int, float]]:
    """The same steps undisturbed; returns the memory of all its processes by step."""
    sizes = []
    job = twin.start(f"checkpoint.every_steps={last}")
    deadline = time.monotonic() + 60 * max(3.0, 2 * MINUTES)
    while not (twin.checkpoint_folder / f"step-{last:08d}").exists():
        assert not job.ended, job.text
        assert time.monotonic() < deadline
        sizes.append((twin.last_row, anonymous_mb(job)))
        time.sleep(1)
    job.kill()
    job.wait()
    return sizes


@pytest.mark.full
@pytest.mark.timeout(60 * 4 * MINUTES + 600)
def test_soak(scenario: Scenario, shards: Path) -> None:
    scenario.world_size, scenario.options = 2, OPTIONS
    bad = corrupt(shards, one_in=50)
    rng = random.Random(0)
    ends_at = time.monotonic() + 60 * MINUTES
    faults = []
    while time.monotonic() < ends_at:
        faults.append(disturb(scenario, rng))
    while disturb(scenario, rng) != "SIGTERM of one rank":  # a last one that saves where it stands
        pass
    last = scenario.status["step"]
    assert len(losses(scenario.run_dir)) == scenario.checkpoints[-1] == last
    assert metrics(scenario.run_dir)[-1]["bad_samples"] == bad

    folder = scenario.folder / "twin"
    folder.mkdir()
    twin = Scenario(folder, shards, scenario.starter, scenario.undisturbed, world_size=2, options=OPTIONS)
    sizes = run_twin(twin, last)
    assert losses(twin.run_dir)[:last] == losses(scenario.run_dir)
    name = f"step-{last:08d}"
    ours, theirs = (saved_tensors(each.checkpoint_folder / name, each.folder / "scratch") for each in (scenario, twin))
    assert [key for key in ours if not ours[key].equal(theirs[key])] == []
    steps, megabytes = np.array(sizes[len(sizes) // 2 :]).T  # the first half fills caches
    growth = 1000 * np.polyfit(steps, megabytes, 1)[0]
    print(f"{len(faults)} faults in {last} steps; memory grows by {growth:.3f} MB per 1,000 steps")
    scenario.report(f"{len(faults)} faults, {last} steps, equal; {growth:.2f} MB of growth per 1,000 steps")
    assert growth < MOST_GROWTH_MB
