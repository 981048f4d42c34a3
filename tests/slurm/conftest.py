import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm.cluster import Cluster, why_not
from tiny import write_scenes


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm of this session's own; without it, tests that need one are skipped."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # pytest's own are too long for the address of a socket
    folder.chmod(0o755)  # munge looks at it
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny synthetic set: train/ and the evaluation folders."""
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")
