"""`clipx launch` with real launchers and real training on this machine's CPU."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import losses, metrics, status, tiny_config, write_scenes

from clipx.config.load import dump_config

LAUNCHER_S = ("NNODES", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")
Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=48) / "train"


@pytest.fixture
def launch(tmp_path: Path, shards: Path) -> Iterator[Launch]:
    """Starts `clipx launch` on the tiny run in tmp_path/run; kills at the end what a failed test has left."""
    (tmp_path / "config.yaml").write_text(dump_config(tiny_config(tmp_path / "run", shards)))
    started: list[subprocess.Popen[str]] = []

    def start(launcher: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER_S}
        command = [sys.executable, "-m", "clipx", "launch", launcher, str(tmp_path / "config.yaml"), *arguments]
        started.append(subprocess.Popen(command, env={**inherited, "OMP_NUM_THREADS": "1", **environment}, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before its time"
        assert time.monotonic() < deadline, "waited 200 s"
        time.sleep(0.05)


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= step, process)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.full)])  # each imports for seconds
def test_it_trains_to_the_end(launch: Launch, tmp_path: Path, processes: int) -> None:
    assert launch("torchrun", "steps=3", f"--gpus-per-node={processes}").wait(200) == 0
    assert status(tmp_path / "run")["status"] == "complete"
    assert len(losses(tmp_path / "run")) == 3


@pytest.mark.full
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_stopped_it_says_again_and_goes_on(launch: Launch, tmp_path: Path, launcher: str) -> None:
    arguments = ("steps=150", "--gpus-per-node=2")
    process = launch(launcher, *arguments)
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 85
    stopped = status(tmp_path / "run")
    assert (stopped["status"], stopped["reason"]) == ("again", "SIGTERM")
    assert 5 <= stopped["step"] < 150
    assert launch(launcher, *arguments).wait(200) == 0
    assert status(tmp_path / "run")["status"] == "complete"
    assert len(losses(tmp_path / "run")) == 150


@pytest.mark.full
def test_accelerate_on_two_machines(launch: Launch, tmp_path: Path) -> None:
    """Here one machine, on which the second launcher must not ask for the first one's port."""
    where = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    first = launch("accelerate", "steps=3", "--gpus-per-node=1", **where)
    time.sleep(1)
    second = launch("accelerate", "steps=3", "--gpus-per-node=1", "--accelerate=--machine_rank=1", **where)
    assert (first.wait(200), second.wait(60)) == (0, 0)
    assert status(tmp_path / "run") == {"status": "complete", "step": 3, "reason": "all steps done"}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_elastic_nodes_come_and_go(launch: Launch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A lost node leaves the other to go on, a new one joins it, and no step is lost or done twice in the record."""
    where = {"NNODES": "1:2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    arguments = ("steps=100000", "checkpoint.every_steps=40", "--gpus-per-node=1")
    run_dir = tmp_path / "run"
    stays = launch("torchrun", *arguments, **where)
    time.sleep(1)
    goes = launch("torchrun", *arguments, **where)
    wait_for_step(run_dir, 50, stays)
    for process in descendants(goes.pid):  # as a node that loses its power: torchrun and its process at once
        os.kill(process, signal.SIGKILL)
    assert goes.wait(60) != 0
    wait_for_step(run_dir, 60, stays)
    comes = launch("torchrun", *arguments, **where)
    wait_for(
        lambda: (run_dir / "status.json").exists() and status(run_dir)["status"] == "again", stays
    )  # asked to by torchrun, for the new node
    wait_for_step(run_dir, status(run_dir)["step"] + 10, stays)
    comes.send_signal(signal.SIGTERM)
    assert (comes.wait(120), stays.wait(120)) == (85, 85)
    assert len(losses(run_dir)) == status(run_dir)["step"]
    pairs_of_a_rank = re.findall(r"(\d+) pairs of a rank", capfd.readouterr().err)
    assert pairs_of_a_rank == ["12", "24", "12"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """The process and all that it started, children first."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [found for child in children for found in descendants(child)] + [pid]
