"""Options and rules of all tests: no network, one thread per process, GPU tests only where there is a GPU."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from browser import Browser

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


@pytest.fixture(scope="session")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of each kind of `transformers_folders.KINDS` a folder, made when it is first asked for; no test changes it."""
    from transformers_folders import KINDS

    return _made_once(lambda kind: KINDS[kind](tmp_path_factory.mktemp("transformers") / "model"))


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of each shape of `open_clip_models.MODELS` a folder, made when it is first asked for; no test changes it."""
    from open_clip_models import MODELS, write_model

    return _made_once(lambda shape: write_model(tmp_path_factory.mktemp("open_clip") / shape, MODELS[shape]))


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """A headless Chromium; a test that asks for it is skipped where there is none."""
    from browser import chromium

    with chromium() as started:
        yield started


def _made_once(make: Callable[[str], Path]) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]

    return folder
