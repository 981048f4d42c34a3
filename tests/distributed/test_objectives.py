"""Objectives with terms, with no coupled loss, and with pieces that have nothing to do: exact on any topology."""

import logging
from pathlib import Path

import pytest
import torch
from distributed.objectives import (
    OBJECTIVES,
    Captioning,
    Grads,
    Supervised,
    step_gradients,
    textbook_gradients,
    write_scored,
)
from distributed.ranks import run_ranks
from plan_assumptions import ASSUMPTIONS
from tiny import metrics, tiny_config

import clipx
from clipx.config.schema import RunConfig
from clipx.errors import InputError
from clipx.plan.run import make_plan
from clipx.train.trainer import train

TOPOLOGIES = [(1, 3, "ddp"), (2, 1, "ddp"), (2, 3, "ddp"), (2, 3, "fsdp2")]  # W, k
SHARDED = TOPOLOGIES[3:]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scored(tmp_path_factory.mktemp("scored"))


def config_of(run_dir: Path, shards: Path, *overrides: str) -> RunConfig:
    return tiny_config(run_dir, shards, "data.max_bad_fraction=0.1", *overrides)


def gradients(name: str, config: RunConfig) -> Grads:
    return step_gradients(config, OBJECTIVES[name][0])


def expected_gradients(name: str, config: RunConfig) -> Grads:
    return textbook_gradients(config, *OBJECTIVES[name])


@pytest.mark.parametrize(
    ("name", "topologies"),
    [("sparse", SHARDED), *(pytest.param(name, TOPOLOGIES, marks=pytest.mark.full) for name in OBJECTIVES)],
)
def test_gradients_are_the_textbooks(
    name: str, topologies: list[tuple[int, int, str]], shards: Path, tmp_path: Path
) -> None:
    (expected,) = run_ranks(expected_gradients, 1, name, config_of(tmp_path, shards, "micro_batch_size=24"))
    assert expected["image_tower.projection.weight"].abs().max() > 1e-6
    for world_size, num_pieces, kind in topologies:
        size = 24 // world_size // num_pieces
        config = config_of(tmp_path, shards, f"micro_batch_size={size}", f"parallel.type={kind}")
        for results in run_ranks(gradients, world_size, name, config):
            assert expected.keys() <= results.keys()
            for weight, gradient in results.items():
                wanted = expected.get(weight, torch.zeros_like(gradient))
                torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-10, msg=f"{kind} {world_size} {weight}")


def train_captioning(config: RunConfig) -> int:
    return train(config, objective=Captioning)


def train_supervised(config: RunConfig) -> int:
    return train(config, objective=Supervised)


def test_trains_in_bf16_with_all_that_a_run_has(shards: Path, tmp_path: Path) -> None:
    overrides = ("precision=bf16", "ema.decay=0.5", "activation_checkpointing=1", "micro_batch_size=auto", "steps=6")
    evaluation = f"evaluate.seen={{type: retrieval, data: {shards}, every_steps: 3}}"
    config = config_of(tmp_path / "run", shards, *overrides, evaluation)
    assert run_ranks(train_captioning, 2, config) == [0, 0]
    rows = metrics(tmp_path / "run")
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["loss_contrastive"] + 2 * rows[-1]["loss_captions"], abs=1e-3)
    assert 0 <= rows[-1]["hits"] <= 1
    assert len(list((tmp_path / "run" / "eval").iterdir())) == 2
    assert clipx.load(tmp_path / "run").encode_text("a dog").shape == (1, 16)


@pytest.mark.full
def test_supervised_targets_train_without_any_contrastive_loss(shards: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", shards, "micro_batch_size=4", "optim.lr=1e-2")
    assert run_ranks(train_supervised, 2, config) == [0, 0]
    curve = [row["loss"] for row in metrics(tmp_path / "run")]
    assert curve[-1] < 0.5 * curve[0]


def test_starts_from_another_objective_and_goes_on_with_its_own_alone(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = ("steps=2", "data.workers=0")
    assert train(config_of(tmp_path / "plain", shards, *short)) == 0
    with caplog.at_level(logging.INFO):
        started = config_of(tmp_path / "captions", shards, *short, f"start_from={tmp_path / 'plain'}")
        assert train(started, objective=Captioning) == 0
    assert "has no decoder.0.weight, decoder.1.bias, decoder.1.weight; its initial values stay" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = config_of(tmp_path / "again", shards, *short, f"start_from={tmp_path / 'captions'}")
        assert train(again, objective=Captioning) == 0
    assert "initial values stay" not in caplog.text
    with pytest.raises(InputError, match="was begun with the objective Captioning, not ContrastiveObjective; go"):
        train(config_of(tmp_path / "captions", shards, "steps=4", "data.workers=0"))


def test_the_plan_knows_what_an_objective_adds_and_what_it_spares(shards: Path, tmp_path: Path) -> None:
    overrides = ("global_batch_size=96", "micro_batch_size=6", "precision=bf16", "parallel.type=fsdp2")
    config = config_of(tmp_path, shards, *overrides)
    captioning, supervised = (
        make_plan(config, ASSUMPTIONS, world_size=4, build=kind).asked.heaviest for kind in (Captioning, Supervised)
    )
    towers = captioning.work.image_forward + captioning.work.text_forward
    assert captioning.work.useful == 3 * (towers + 1e6)
    assert captioning.parameters["beside the towers"] == 1 + 64 * 16 + 16 * 64 + 64
    assert captioning.work.again(4) == towers * 3 / 4
    gathers = [
        next(part.times for part in plan.pace.communication if part.part == "weights of blocks")
        for plan in (captioning, supervised)
    ]
    assert gathers == [3 * 4 - 1, 2 * 4]  # forward passes of the gradient cache, and plain ones
    assert (supervised.work.again(4), supervised.pace.loss_s, supervised.memory.parts.texts) == (0, 0, 0)
