"""A cache of its own for each test, and the shards that it scans."""

import pytest

from clipx.data.index import scan as scan_module


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def scanned(monkeypatch):
    """Paths of the shards that are scanned, in any order."""
    paths, real = [], scan_module._scan
    monkeypatch.setattr(scan_module, "_scan", lambda job, *rest: paths.append(job.path) or real(job, *rest))
    return paths
