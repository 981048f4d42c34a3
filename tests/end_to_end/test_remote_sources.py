"""`clipx train` over a network: what it does when the server goes away, and how it starts where nothing answers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import WebServer
from tiny import CONFIG, metrics, status

Train = Callable[..., subprocess.Popen[str]]
REMOTE = "data.remote={timeout_s: 1, retries: 1}"  # a read takes at most 1 + 0.5 + 1 s


@pytest.fixture
def web(scenes: Path) -> Iterator[WebServer]:
    with WebServer({path.name: path.read_bytes() for path in (scenes / "train").glob("*.tar")}) as server:
        yield server


@pytest.fixture
def train(tmp_path: Path, environment: dict[str, str]) -> Iterator[Train]:
    """Starts `clipx train` in a session of its own; what is left of it at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(shards: str, *overrides: str, **variables: str) -> subprocess.Popen[str]:
        given = [f"run_dir={tmp_path / 'run'}", f"data.train=['{shards}']", f"data.index={tmp_path / 'index'}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "clipx", "train", str(CONFIG), *given, REMOTE, *overrides],
            env=without_cloud(environment) | {"CLIPX_CACHE": str(tmp_path / "user_cache")} | variables,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def without_cloud(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}


def members(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def shards(web: WebServer) -> str:
    return "::".join(f"{web.url}/{name}" for name in sorted(web.files))


def wait_for_steps(process: subprocess.Popen[str], run_dir: Path, number: int) -> None:
    while not (run_dir / "metrics.jsonl").exists() or len(metrics(run_dir)) < number:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if "clipx: error:" in line or "Traceback" in line]


in_this_process = pytest.param(0, marks=pytest.mark.full)


@pytest.mark.parametrize("trouble", ["gone", pytest.param("silent", marks=pytest.mark.full)])
@pytest.mark.parametrize("workers", [in_this_process, 2])
def test_a_server_that_goes_away_ends_the_run(
    tmp_path: Path, web: WebServer, train: Train, trouble: str, workers: int
) -> None:
    process = train(shards(web), f"data.workers={workers}", "data.shuffle_window=4", "steps=100000")
    wait_for_steps(process, tmp_path / "run", 5)
    if trouble == "gone":
        web.vanish()
    else:
        web.mode = "silent"
    _, text = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = errors(text)
    assert f"shard {web.url}/" in line
    assert "(the last of 2 tries)" in line
    assert "check the storage and the network" in line
    if trouble == "silent":
        assert "no answer within 1 s" in line
    assert members(process.pid) == []
    assert status(tmp_path / "run")["status"] == "failed"
    assert web.url in status(tmp_path / "run")["reason"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        ({}, "no usable credentials: Unable to locate credentials; check the rights"),
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, "(the last of 2 tries); check the storage"),
    ],
    ids=["absent", "unreachable"],
)
def test_a_bucket_that_cannot_be_asked_is_one_line(train: Train, credentials: dict[str, str], reason: str) -> None:
    with WebServer() as gone:
        pass  # nothing listens there any more
    asked = {"AWS_ENDPOINT_URL": gone.url, "AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/none"}
    process = train("s3://bucket/a.tar", **asked | credentials)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = errors(text)
    assert "'s3://bucket/a.tar'" in line
    assert reason in line
    assert members(process.pid) == []
