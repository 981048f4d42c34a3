"""Options and rules of all tests: no network, one thread per process, GPU tests only where there is a GPU."""

import os

import pytest
from hypothesis import settings

# Set before any library reads them; a person's own values win.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("clipx", deadline=None)  # hypothesis would fail examples that a busy machine makes slow
settings.load_profile("clipx")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew instead of comparing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_items:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
