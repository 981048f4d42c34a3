"""The evaluation of a fit run is the same for every number of ranks, however they share the model."""

from pathlib import Path

import pytest
from distributed.ranks import run_ranks
from fit_runs import NUM_VAL, tiny_fit, write_table_shards

from clipx.config.fit import FitConfig
from clipx.data.build import open_fit_samples
from clipx.data.in_order import batches_in_order
from clipx.distributed.parallelize import reshard
from clipx.distributed.runtime import start_runtime
from clipx.evaluate.supervised import supervised
from clipx.train.build import Run, build_run
from clipx.train.build_features import load_val_index
from clipx.train.held_out import evaluate_held_out

FROZEN = ("encoder.train=frozen", "keep_features=false")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_shards(tmp_path_factory.mktemp("table"))


def figures(config: FitConfig, batch_size: int) -> dict[str, float]:
    """Of a run that has made no step, on this rank."""
    with start_runtime(config) as runtime:
        return block_figures(build_run(config, runtime), config, batch_size)


def block_figures(run: Run, config: FitConfig, batch_size: int) -> dict[str, float]:
    index = load_val_index(config, run.runtime)
    blocks = batches_in_order(
        open_fit_samples(config, index),
        tokenizer=run.encoder.tokenizer,
        counts=index.counts,
        image_size=config.model.image.image_size,
        batch_size=batch_size,
        rank=run.runtime.rank,
        world_size=run.runtime.world_size,
    )
    found = supervised(run.stepper.objective.model, config, blocks, group=run.runtime.group)
    reshard(run.stepper.model)
    return found.metrics | {f"trivial {name}": value for name, value in found.derived.items()}


@pytest.mark.parametrize(
    ("world_size", "kind", "batch_size"),
    [pytest.param(2, "ddp", 8, marks=pytest.mark.full), (3, "fsdp2", NUM_VAL)],
)
def test_figures_do_not_depend_on_ranks(
    world_size: int, kind: str, batch_size: int, shards: Path, tmp_path: Path
) -> None:
    """36 samples are 5 blocks of 8, or a single one: some ranks have blank blocks."""
    (expected,) = run_ranks(figures, 1, tiny_fit(tmp_path / "one", shards, *FROZEN), batch_size)
    assert expected["colour/accuracy_without_text"] > 0
    config = tiny_fit(tmp_path / "several", shards, *FROZEN, f"parallel.type={kind}")
    for found in run_ranks(figures, world_size, config, batch_size):
        assert found == expected


def held_out(config: FitConfig) -> dict[str, float]:
    with start_runtime(config) as runtime:
        run = build_run(config, runtime)
        assert (run.kept_val is not None) == config.keeps_features
        return evaluate_held_out(run, config).metrics


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.full), 2])
def test_with_and_without_kept_features_it_is_the_same(world_size: int, shards: Path, tmp_path: Path) -> None:
    (expected,) = run_ranks(held_out, 1, tiny_fit(tmp_path / "read", shards, *FROZEN))
    config = tiny_fit(tmp_path / "kept", shards, "encoder.train=frozen")
    for found in run_ranks(held_out, world_size, config):
        assert found == pytest.approx(expected, abs=1e-6)
