"""A run that is killed or stopped anywhere goes on as if nothing had happened, by the same command."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import losses, metrics, saved_tensors, status, tiny_config

from clipx.config.load import dump_config

STEPS = 24


def write_config(folder: Path, scenes: Path, *overrides: str) -> Path:
    file = folder / "config.yaml"
    config = tiny_config(
        folder / "run",
        scenes / "train",
        f"steps={STEPS}",
        "checkpoint.every_steps=4",
        "data.workers=1",
        f"evaluate.scenes={{type: zeroshot, data: {scenes / 'wds_scenes'}, every_steps: 8}}",
        *overrides,
    )
    file.write_text(dump_config(config))
    return file


@pytest.fixture(scope="module")
def undisturbed(scenes: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The run folder of the same config, never interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder, scenes)
    subprocess.run([sys.executable, "-m", "clipx", "train", str(config)], env=environment, check=True, timeout=240)
    return folder / "run"


def start(config: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "clipx", "train", str(config)], env=environment)


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    file = run_dir / "metrics.jsonl"
    while not (file.exists() and len(file.read_text().splitlines()) >= step):
        assert process.poll() is None, f"ended with {process.returncode} before step {step}"
        assert time.monotonic() < deadline, f"no step {step} in 120 s"
        time.sleep(0.01)


def assert_same_run(run_dir: Path, undisturbed: Path, scratch: Path) -> None:
    """Every loss, every weight and every moment bit for bit, and the same evaluations."""
    assert losses(run_dir) == losses(undisturbed)
    name = f"step-{STEPS:08d}"
    one, two = (
        saved_tensors(folder / "checkpoints" / name, scratch / str(i))
        for i, folder in enumerate((run_dir, undisturbed))
    )
    assert one.keys() == two.keys()
    assert len(one) > 30
    assert [key for key in one if not one[key].equal(two[key])] == []
    evaluations = [
        {path.name: path.read_text() for path in (folder / "eval").iterdir()} for folder in (run_dir, undisturbed)
    ]
    assert evaluations[0] == evaluations[1]
    assert len(evaluations[0]) == 3


def test_killed_at_a_random_step(scenes: Path, undisturbed: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    config = write_config(tmp_path, scenes)
    step = random.Random(time.time_ns()).randrange(1, STEPS - 2)
    print(f"killing after step {step}")
    process = start(config, environment)
    wait_for_step(tmp_path / "run", step, process)
    process.kill()
    process.wait()
    assert start(config, environment).wait(timeout=240) == 0
    assert_same_run(tmp_path / "run", undisturbed, tmp_path / "scratch")
    assert status(tmp_path / "run") == {"status": "complete", "step": STEPS, "reason": "all steps done"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_saves_and_asks_to_be_started_again(
    number: signal.Signals, scenes: Path, undisturbed: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    config = write_config(tmp_path, scenes, "checkpoint.every_steps=0")
    process = start(config, environment)
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(number)
    assert process.wait(timeout=120) == 85
    stopped = status(tmp_path / "run")
    assert (stopped["status"], stopped["reason"]) == ("again", number.name)
    assert 5 <= stopped["step"] < STEPS
    assert len(metrics(tmp_path / "run")) == stopped["step"]  # nothing was lost
    assert start(config, environment).wait(timeout=240) == 0
    assert_same_run(tmp_path / "run", undisturbed, tmp_path / "scratch")


def test_a_complete_run_says_so_and_changes_nothing(undisturbed: Path, environment: dict[str, str]) -> None:
    config = undisturbed.parent / "config.yaml"
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "checkpoints").rglob("*")}
    rows = metrics(undisturbed)
    assert start(config, environment).wait(timeout=240) == 0
    assert status(undisturbed)["status"] == "complete"
    assert {path: path.stat().st_mtime_ns for path in (undisturbed / "checkpoints").rglob("*")} == before
    assert metrics(undisturbed) == rows
