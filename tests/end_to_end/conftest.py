import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_scenes

Clipx = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny synthetic set: train/ and the evaluation folders."""
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of a child process: one thread each, no launcher's variables."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return inherited | {"OMP_NUM_THREADS": "1", "CLIPX_DEBUG": "0"}


@pytest.fixture(scope="session")
def clipx(environment: dict[str, str]) -> Clipx:
    """Runs the command line in a process of its own."""

    def run(*arguments: object, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "clipx", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run
