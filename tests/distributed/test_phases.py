"""Stages with smaller inputs and locked towers: the same run for any number of processes, whole or stopped on the way."""

from pathlib import Path

import pytest
from distributed.ranks import run_ranks
from tiny import losses, metrics, saved_tensors, tiny_config, write_scenes

from clipx.train.trainer import train

STAGED = (
    "steps=12",
    "checkpoint.keep_last=9",
    "stages.small={until_step: 5, image_size: 16, patch_drop: 0.0, context_length: 6}",
    "stages.dropped={until_samples: 216, patch_drop: 0.5}",  # 9 steps of 24
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes") / "train"


def test_stages_do_not_depend_on_the_number_of_processes(shards: Path, tmp_path: Path) -> None:
    curves = []
    for name, world_size, micro_batch_size in (("one", 1, "auto"), ("two", 2, "4")):
        config = tiny_config(tmp_path / name, shards, *STAGED, f"micro_batch_size={micro_batch_size}")
        assert run_ranks(train, world_size, config) == [0] * world_size
        curves.append(losses(tmp_path / name))
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert [row["step"] for row in metrics(tmp_path / "one")] == list(range(1, 13))
    saved = sorted(path.name for path in (tmp_path / "one" / "checkpoints").iterdir())
    assert saved == ["step-00000005", "step-00000009", "step-00000012"]
    removed = [row["padding_removed"] for row in metrics(tmp_path / "one")]
    assert min(removed[:5]) > max(removed[5:])  # at most 6 of 24 tokens, then all


def test_a_run_begun_again_in_a_later_stage_goes_on_there(shards: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        config = tiny_config(folder, shards, *STAGED, "checkpoint.every_steps=7")
        assert run_ranks(train, 1, config) == [0]
    for name in ("step-00000009", "step-00000012"):
        (cut / "checkpoints" / name).rename(cut / f"gone-{name}")
    assert run_ranks(train, 1, config) == [0]
    one, other = (
        saved_tensors(folder / "checkpoints" / "step-00000012", tmp_path / "scratch") for folder in (whole, cut)
    )
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    assert losses(whole) == losses(cut)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_locked_tower_trains_from_its_step_on(world_size: int, shards: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path / "run",
        shards,
        "steps=8",
        "checkpoint.every_steps=2",
        "checkpoint.keep_last=9",
        "optim.text.locked_steps=4",
        "optim.image.locked_steps=all",
    )
    assert run_ranks(train, world_size, config) == [0] * world_size
    at = {step: _weights(tmp_path / "run", step, tmp_path / f"scratch{step}") for step in (2, 4, 8)}
    changed_while_locked = {name for name in at[2] if not at[2][name].equal(at[4][name])}
    changed_after = {name for name in at[4] if not at[4][name].equal(at[8][name])}
    projections = {"image_tower.projection.weight", "text_tower.projection.weight", "log_logit_scale"}
    assert changed_while_locked == projections
    assert changed_after == projections | {name for name in at[4] if name.startswith("text_tower.")}


def _weights(run_dir: Path, step: int, scratch: Path) -> dict[str, object]:
    tensors = saved_tensors(run_dir / "checkpoints" / f"step-{step:08d}", scratch)
    return {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
