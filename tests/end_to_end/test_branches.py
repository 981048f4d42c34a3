"""One run has many ends: another one branches off a checkpoint of its stable part, and cools down from there."""

import json
from pathlib import Path

import pytest
import torch
from tiny import checkpoints, losses, metrics, newest_checkpoint, saved_tensors, status, tiny_config, write_scenes

from clipx.checkpoint.find import find_model
from clipx.config.schema import RunConfig
from clipx.errors import InputError
from clipx.train.trainer import train

STABLE = ("optim.schedule=constant", "ema={decay: 0.9}", "checkpoint.every_steps=8", "checkpoint.keep_last=9")
END = ("steps=14", "optim.cooldown_steps=6")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "set") / "train"


@pytest.fixture(scope="module")
def trunk(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without an end, of 20 steps."""
    run_dir = tmp_path_factory.mktemp("trunk")
    assert train(tiny_config(run_dir, shards, *STABLE)) == 0
    return run_dir


def branch(trunk: Path, run_dir: Path, shards: Path, *overrides: str) -> RunConfig:
    start = trunk / "checkpoints" / "step-00000008"
    return tiny_config(run_dir, shards, *STABLE, *END, f"branch_from={start}", *overrides)


def test_a_branch_equals_to_the_bit_a_run_with_its_end_from_the_beginning(
    trunk: Path, shards: Path, tmp_path: Path
) -> None:
    assert train(tiny_config(tmp_path / "whole", shards, *STABLE, *END)) == 0
    assert train(branch(trunk, tmp_path / "branch", shards)) == 0
    assert [row["loss"] for row in metrics(tmp_path / "branch")] == losses(tmp_path / "whole")[8:]
    assert losses(tmp_path / "whole")[:9] == losses(trunk)[:9]  # the cooldown begins with the ninth step's rate
    assert losses(tmp_path / "whole")[10:] != losses(trunk)[10:14]
    ends = [saved_tensors(newest_checkpoint(tmp_path / name), tmp_path) for name in ("whole", "branch")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_branch_is_a_run_of_its_own(trunk: Path, shards: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trunk.rglob("*")}
    config = branch(trunk, tmp_path / "branch", shards)
    assert train(config) == 0
    assert {path: path.stat().st_mtime_ns for path in trunk.rglob("*")} == before
    assert status(tmp_path / "branch")["step"] == 14
    # what it goes back to after a spike or a kill is its own
    assert [path.name for path in checkpoints(tmp_path / "branch")] == ["step-00000008", "step-00000014"]
    newest = [newest_checkpoint(run) for run in (trunk, tmp_path / "branch")]
    assert len({json.loads((path / "state.json").read_text())["wandb_id"] for path in newest}) == 2  # a tracker's, too


def test_a_branch_goes_on_from_its_own_checkpoints(trunk: Path, shards: Path, tmp_path: Path) -> None:
    assert train(branch(trunk, tmp_path / "branch", shards)) == 0
    again = branch(trunk, tmp_path / "branch", shards, "steps=15", f"branch_from={tmp_path / 'gone'}")
    assert train(again) == 0
    assert [row["step"] for row in metrics(tmp_path / "branch")] == list(range(9, 16))


def test_a_run_folder_is_branched_from_where_it_would_go_on(shards: Path, tmp_path: Path) -> None:
    """From its newest checkpoint, though another one is the best and so its model."""
    val = f"evaluate.val={{type: loss, data: {shards}, every_steps: 4}}"
    still = ("optim.lr=0", val, "stop={metric: val/loss, patience: 9}")
    assert train(tiny_config(tmp_path / "run", shards, *STABLE, *still, "steps=8")) == 0
    assert find_model(tmp_path / "run").folder.name == "step-00000004"
    assert train(branch(tmp_path, tmp_path / "branch", shards, f"branch_from={tmp_path / 'run'}")) == 0
    assert [row["step"] for row in metrics(tmp_path / "branch")] == list(range(9, 15))


def test_ends_that_belong_to_another_length_are_said(
    trunk: Path, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = ("steps=10", "optim.cooldown_steps=5", "stages={small: {until_step: 10, image_size: 16}}")
    assert train(branch(trunk, tmp_path / "branch", shards, *late)) == 0
    assert "branch_from is at step 8, and the cooldown begins at 5: the learning rate falls at once" in caplog.text
    assert "stage small ends at step 10, and the run at 10: its inputs never become the model's own" in caplog.text


def test_what_cannot_be_branched_from_is_said(trunk: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: no such folder"):
        train(branch(trunk, tmp_path / "a", shards, f"branch_from={tmp_path / 'gone'}"))
    with pytest.raises(InputError, match="more than steps=7"):
        train(branch(trunk, tmp_path / "b", shards, "steps=7", "optim.cooldown_steps=2"))
    with pytest.raises(InputError, match=r"not the model of .*step-00000008"):
        train(branch(trunk, tmp_path / "c", shards, "model.embed_dim=8"))
    with pytest.raises(InputError, match="give one of the two"):
        branch(trunk, tmp_path / "d", shards, f"start_from={trunk}")
