"""Steps on a GPU: the host waits for nothing, and nothing is copied from pageable memory, for that is a wait too."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from fit_runs import tiny_fit, write_table_shards
from tiny import tiny_config, write_scenes
from torch.profiler import ProfilerActivity, profile

from clipx.config.schema import JobConfig
from clipx.distributed.runtime import start_runtime
from clipx.train.build import build_run
from clipx.train.metrics.step_metrics import RankStats, StopOrSave

pytestmark = pytest.mark.gpu

SETTINGS = [
    "precision=fp32",
    "precision=bf16",
    "precision=fp16",
    "compile=true",
    "micro_batch_size=3",
    "micro_batch_size=3 compile=true",
    "activation_checkpointing=1",
    "model.image.patch_drop=0.5",
    "data.augment.grayscale=0.5",
    "loss.type=sigmoid model.init_logit_bias=-10",
    "loss.exchange=ring",
    "ema={}",
    "optim.type=stable_adamw",
    "optim.type=muon",
    "parallel.type=fsdp2 optim.type=muon",
    "precision=fp16 optim.type=muon",
    "parallel.type=fsdp2",
    "parallel.type=fsdp2 ema={} optim.type=stable_adamw",
    "deterministic=true",
]


FIT_SETTINGS = [
    "encoder.train=frozen",
    "encoder.train=frozen absent.stand_in=translated fusion=late",
    "encoder.train=frozen keep_features=false micro_batch_size=8",
    "encoder.train=all fusion=attention",
    "encoder.train=all fusion=bilinear targets.colour.class_weights=balanced",
    'encoder.train={"image":1} fusion=concat precision=fp16 micro_batch_size=8',
    "encoder.train=all fusion=gated compile=true",
    "encoder.train=all deterministic=true absent.stand_in=translated",
    "encoder.train=all parallel.type=fsdp2",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes") / "train"


@pytest.fixture(autouse=True)
def torchs_settings() -> Iterator[None]:
    """They are those of the process, and other tests share it."""
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_shards(tmp_path_factory.mktemp("table"))


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_neither_waits_nor_copies_from_pageable_memory(settings: str, shards: Path, tmp_path: Path) -> None:
    check_third_step(tiny_config(tmp_path / "run", shards, "precision=bf16", *settings.split()))


@pytest.mark.parametrize("settings", FIT_SETTINGS)
def test_a_step_of_a_fit_run_does_neither(settings: str, table: Path, tmp_path: Path) -> None:
    check_third_step(tiny_fit(tmp_path / "run", table, "precision=bf16", *settings.split()))


def check_third_step(config: JobConfig) -> None:
    with start_runtime(config) as runtime:
        run = build_run(config, runtime)
        with closing(run.batches()) as batches:
            for step in range(2):  # the first steps compile, allocate and compare names
                run.stepper(next(batches), step=step, requests=StopOrSave(), stats=RankStats()).read()
            batch = next(batches)
            with profile(activities=[ProfilerActivity.CUDA]) as profiled:
                torch.cuda.set_sync_debug_mode("error")
                launched = run.stepper(batch, step=2, requests=StopOrSave(), stats=RankStats())
                torch.cuda.set_sync_debug_mode("default")
            launched.read()
    assert not [event.name for event in profiled.events() if "Pageable" in event.name]
