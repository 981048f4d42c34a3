"""What a real step of two ranks hands to torch.distributed, beside what the plan says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.ranks import run_ranks
from random_teachers import build_taught
from tiny import tiny_config
from torch.profiler import profile

from clipx.config.geometry import resolve_geometry
from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.data.columns import blank_columns
from clipx.data.tokenizer import build_tokenizer
from clipx.distributed.runtime import start_runtime
from clipx.objectives.build import build_objective
from clipx.objectives.objective import BuildObjective
from clipx.plan.communication import transfers
from clipx.plan.model import PhaseModel
from clipx.train.build_stepper import build_stepper
from clipx.train.metrics.step_metrics import RankStats, StopOrSave
from clipx.types import Batch

pytestmark = pytest.mark.full  # every case starts two processes and profiles a step

W, PAIRS, TOKENS = 2, 12, 8
FSDP2 = "parallel.type=fsdp2"
SETTINGS = {
    "ddp": ["micro_batch_size=12"],
    "ddp, locked, gradient cache": ["micro_batch_size=4", "optim.image.locked_steps=all"],
    "ring": ["micro_batch_size=12", "loss.exchange=ring"],
    "sigmoid, ring": ["micro_batch_size=12", "loss.type=sigmoid", "model.init_logit_bias=-10", "loss.exchange=ring"],
    "two captions": ["micro_batch_size=12", "data.captions_per_image=2"],
    "fsdp2, gradient cache": [FSDP2, "micro_batch_size=6"],
    "distill": ["micro_batch_size=6"],
    "distill, ring": ["micro_batch_size=12", "loss.exchange=ring"],
    "fsdp2, kept whole": [FSDP2, "micro_batch_size=4", "parallel.reshard_after_forward=false"],
}


NAMES = ("loss", "image_cosine", "text_cosine", "num_tokens", "model_flops")
NAMES_OF_TWO = ("loss", "loss_contrastive", *NAMES[1:3], "loss_distill", "distill_large", "distill_small", *NAMES[3:])


def build_of(config: RunConfig) -> BuildObjective:
    """Runs that are called so learn from teachers."""
    return build_taught if Path(config.run_dir).name.startswith("distill") else build_objective


def batch_of(config: RunConfig) -> Batch:
    captions = config.data.captions_per_image
    number_I = torch.arange(PAIRS // captions)
    return Batch(
        index=0,
        images_IHWC=torch.zeros(len(number_I), 32, 32, 3, dtype=torch.uint8),
        tokens_T=torch.zeros(PAIRS * TOKENS, dtype=torch.int64),
        lengths_B=torch.full((PAIRS,), TOKENS),
        max_length=TOKENS,
        sample_id_I=number_I,
        slot_I=number_I,
        source_I=torch.zeros_like(number_I),
        captions_per_image=captions,
    )


def handed_over(configs: Sequence[RunConfig]) -> list[Counter[str]]:
    """For each config the bytes of one step by collective, all in float32 but the ids."""
    found = []
    with start_runtime(configs[0]) as started:
        for config in configs:
            runtime = replace(started, parallel=config.parallel)
            phase = phase_at(config, 0)
            build = build_of(config)
            objective = build(config, phase, vocab_size=build_tokenizer(config.model.text).vocab_size)
            stepper = build_stepper(
                config, runtime, objective, length=config.length(), phase=phase, micro_batch_size=None
            )
            batch = batch_of(config)
            columns = blank_columns(objective.column_readers, batch.sizes)
            stepper.names = NAMES if not columns else NAMES_OF_TWO  # compared once a phase
            with profile(record_shapes=True) as profiler:
                stepper(replace(batch, columns=columns), step=0, requests=StopOrSave(), stats=RankStats()).read()
            found.append(counted(profiler.events()))
            runtime.release()
    return found


def counted(events: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for event in events:
        name, shapes = event.name, event.input_shapes
        if name == "c10d::_allgather_base_":
            total["all-gather"] += (8 if shapes[0] == [W * PAIRS] else 4) * numel(shapes[0])
        elif name == "c10d::_reduce_scatter_base_":
            total["reduce-scatter"] += 4 * numel(shapes[1])
            total["all-reduce"] -= 4 * numel(shapes[1])  # gloo sums by one, which is counted below
        elif name == "gloo:all_reduce":
            total["all-reduce"] += 4 * numel(shapes[0])
        elif name == "gloo:send":
            total["shift"] += W * 4 * numel(shapes[0])
    return total


def numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: tiny_config(folder / name, "none.tar", *settings) for name, settings in SETTINGS.items()}


@pytest.fixture(scope="module")
def handed(configs: dict[str, RunConfig]) -> dict[str, Counter[str]]:
    return dict(zip(configs, run_ranks(handed_over, W, list(configs.values()), timeout_s=250)[0], strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_collectives_are_those_of_a_real_step(
    name: str, configs: dict[str, RunConfig], handed: dict[str, Counter[str]]
) -> None:
    config = configs[name]
    model = PhaseModel(config, phase_at(config, 0), caption_tokens=TOKENS, build=build_of(config))
    geometry = resolve_geometry(
        config.global_batch_size, config.micro_batch_size, W, captions_per_image=config.data.captions_per_image
    )
    planned: Counter[str] = Counter()
    for transfer in transfers(config, model, geometry):
        planned[transfer.collective] += transfer.payload * transfer.times
    for collective in ("all-gather", "reduce-scatter", "shift"):
        assert handed[name][collective] == pytest.approx(planned[collective], rel=1e-3), collective
    # besides: the step's own numbers and FSDP2's norms of gradients, a hundred at most
    assert planned["all-reduce"] <= handed[name]["all-reduce"] < planned["all-reduce"] + 1000
