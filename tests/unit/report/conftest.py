"""A run that was stopped and went on, and an empty one; no test changes them."""

from pathlib import Path

import pytest
from tiny import tiny_config, write_scenes

from clipx.train.trainer import run


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic sets at their smallest."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "sets")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """The folder of a run of six steps in two starts, with evaluations of both kinds."""
    run_dir = tmp_path_factory.mktemp("runs") / "first"
    overrides = [
        f"evaluate.seen={{type: zeroshot, data: '{scenes / 'wds_scenes'}', every_steps: 2}}",
        f"evaluate.found={{type: retrieval, data: '{scenes / 'wds_scenes_retrieval'}'}}",
    ]
    run(tiny_config(run_dir, scenes / "train", "steps=4", *overrides))
    for path in run_dir.glob("eval/found-*"):
        path.unlink()
    run(tiny_config(run_dir, scenes / "train", "steps=6", *overrides))
    return run_dir


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """The folder of a run of four steps with another learning rate."""
    run_dir = tmp_path_factory.mktemp("runs") / "second"
    evaluated = f"evaluate.seen={{type: zeroshot, data: '{scenes / 'wds_scenes'}'}}"
    run(tiny_config(run_dir, scenes / "train", "steps=4", "optim.lr=3e-3", evaluated))
    return run_dir
