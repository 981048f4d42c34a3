"""Stages with smaller inputs, and locked towers: the same run on any number of processes, whole or stopped."""

import shutil
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest
from distributed.ranks import run_ranks
from tiny import losses, metrics, saved_tensors, status, tiny_config, write_scenes

from clipx.config.schema import RunConfig
from clipx.distributed.runtime import Runtime
from clipx.train import trainer
from clipx.train.build import Run, build_run
from clipx.train.loss_spikes import Rollback
from clipx.train.metrics.step_metrics import StopOrSave
from clipx.train.trainer import Loop, train
from clipx.types import Batch

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
    config = tiny_config(cut, shards, *STAGED, "checkpoint.every_steps=7")
    assert run_ranks(train, 1, config) == [0]
    shutil.copytree(cut, whole)
    for name in ("step-00000009", "step-00000012"):
        (cut / "checkpoints" / name).rename(cut / f"gone-{name}")
    assert run_ranks(train, 1, config) == [0]
    one, other = (
        saved_tensors(folder / "checkpoints" / "step-00000012", tmp_path / "scratch") for folder in (whole, cut)
    )
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    assert losses(whole) == losses(cut)


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.full)])
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


def _alive_at_each_build(config: RunConfig) -> list[int]:
    """How many towers of earlier phases were in memory whenever a phase was built."""
    built: list[weakref.ref[object]] = []
    alive: list[int] = []

    def spy(config: RunConfig, runtime: Runtime, rollback: Rollback | None, **options: Any) -> Run:
        alive.append(sum(towers() is not None for towers in built))
        run = build_run(config, runtime, rollback, **options)
        built.append(weakref.ref(run.stepper.objective.model))
        return run

    trainer.build_run = spy
    assert train(config) == 0
    return alive


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp2", marks=pytest.mark.full)])
def test_a_phase_frees_its_memory_before_the_next_is_built(parallel: str, shards: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path / "run", shards, *STAGED, f"parallel.type={parallel}", "activation_checkpointing=1", "ema.decay=0.9"
    )
    assert run_ranks(_alive_at_each_build, 1, config) == [[0, 0, 0]]


def _stopped_in_the_last_step_of_a_phase(config: RunConfig) -> int:
    """Rank 1 alone gets the signal."""
    launch_step = Loop.launch_step

    def signalled(self: Loop, batch: Batch) -> StopOrSave:
        if self.run.progress.step == 4 and self.run.runtime.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return launch_step(self, batch)

    Loop.launch_step = signalled  # type: ignore[method-assign]
    return train(config)


@pytest.mark.full
def test_a_stop_at_the_end_of_a_phase_comes_before_the_next(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", shards, *STAGED)
    assert run_ranks(_stopped_in_the_last_step_of_a_phase, 2, config) == [85, 85]
    assert (status(tmp_path / "run")["status"], status(tmp_path / "run")["step"]) == ("again", 5)
    assert run_ranks(train, 2, config) == [0, 0]
    undisturbed = tiny_config(tmp_path / "undisturbed", shards, *STAGED)
    assert run_ranks(train, 2, undisturbed) == [0, 0]
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")
