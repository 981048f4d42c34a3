"""Whole runs with copies of the weights learn as those without, under DDP, with cached gradients and checkpointing."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from distributed.ranks import run_ranks
from tiny import checkpoints, losses, saved_tensors, tiny_config, write_scenes

from clipx.config.schema import RunConfig
from clipx.train import build_stepper
from clipx.train.trainer import train

OVERRIDES = (
    "precision=bf16",
    "steps=12",
    "micro_batch_size=4",  # k = 3 on two ranks
    "activation_checkpointing=0.5",
    "optim.text.locked_steps=3",
    "ema.decay=0.6",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


def train_with_copies(config: RunConfig) -> int:
    """`train` as on CUDA."""
    with patch.object(build_stepper, "copied_dtype", lambda config, runtime: torch.bfloat16):
        return train(config)


@pytest.mark.full
def test_runs_are_alike(scenes: Path, tmp_path: Path) -> None:
    evaluation = f"evaluate.scenes={{type: zeroshot, data: {next(scenes.glob('wds_*'))}, every_steps: 4}}"
    curves, files = {}, {}
    for name, job in (("plain", train), ("copies", train_with_copies)):
        config = tiny_config(tmp_path / name, scenes / "train", *OVERRIDES, evaluation)
        assert run_ranks(job, 2, config) == [0, 0]
        curves[name] = losses(tmp_path / name)
        files[name] = saved_tensors(checkpoints(tmp_path / name)[-1], tmp_path / f"{name}-tensors")
    assert curves["copies"] != curves["plain"]  # the copies were used
    assert curves["copies"] == pytest.approx(curves["plain"], rel=0.01)
    assert curves["plain"][-1] < curves["plain"][0] - 0.05
    assert files["copies"].keys() == files["plain"].keys()
    assert {tensor.dtype for tensor in files["copies"].values()} == {tensor.dtype for tensor in files["plain"].values()}
