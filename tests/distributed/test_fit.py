"""Fit runs with cells, pictures and texts missing: one curve and one gradient on any topology, and after any kill."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.objectives import Grads, step_gradients, textbook_gradients
from distributed.ranks import run_ranks
from fit_runs import tiny_fit, write_table_shards
from tiny import losses, newest_checkpoint, saved_tensors
from torch import Tensor, nn
from torch.nn import functional

from clipx.config.fit import FitConfig
from clipx.objectives.build import build_objective
from clipx.objectives.objective import Objective
from clipx.train.trainer import train
from clipx.types import Batch

FUSIONS = ("weighted_sum", "concat", "gated", "bilinear", "attention", "late")
TOPOLOGIES = [(1, 3, "ddp"), (2, 1, "ddp"), (2, 3, "fsdp2"), (4, 3, "ddp")]  # W, k
SHARDED, RANKS = TOPOLOGIES[2:3], TOPOLOGIES[1:2]
Topologies = list[tuple[int, int, str]]
FROZEN = ("encoder.train=frozen", "keep_features=false")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_shards(tmp_path_factory.mktemp("table"))


def textbook_loss(outputs: Any, batch: Batch) -> Tensor:
    """The weighted sum of the mean losses over the cells that are there, by indexing."""
    raw_BO, targets_BO = outputs.raw_BO, batch.columns["targets_BO"].double()
    colour_B, price_B, tags_BL = targets_BO[:, 0], targets_BO[:, 1], targets_BO[:, 2:]
    has_colour, has_price, has_tags = (~column.isnan() for column in (colour_B, price_B, tags_BL))
    colour = functional.cross_entropy(raw_BO[:, :4][has_colour], colour_B[has_colour].long())
    price = functional.huber_loss(raw_BO[:, 4][has_price], price_B[has_price])
    tags = functional.binary_cross_entropy_with_logits(raw_BO[:, 5:][has_tags], tags_BL[has_tags])
    return colour + 0.5 * price + tags


def unmeasured(config: Any, phase: Any, *, vocab_size: int) -> Objective:
    """The objective of a run whose embeddings are not measured when it begins, as the textbook's are not."""
    objective = build_objective(config, phase, vocab_size=vocab_size)
    objective.begin = lambda batches, group: None  # type: ignore[method-assign]
    return objective


def gradients(config: FitConfig) -> Grads:
    return step_gradients(config, unmeasured)


def expected_gradients(config: FitConfig) -> Grads:
    return textbook_gradients(config, build_objective, textbook_loss)


@pytest.mark.parametrize(
    ("fusion", "topologies"),
    [("gated", SHARDED), *(pytest.param(f, TOPOLOGIES, marks=pytest.mark.full) for f in ("gated", "late"))],
)
def test_gradients_are_the_textbooks(fusion: str, topologies: Topologies, shards: Path, tmp_path: Path) -> None:
    settings = (f"fusion={fusion}", "absent.stand_in=translated")
    (expected,) = run_ranks(expected_gradients, 1, tiny_fit(tmp_path / "run", shards, "micro_batch_size=24", *settings))
    assert expected["table_tower.fc1.weight"].abs().max() > 1e-6
    for world_size, num_pieces, kind in topologies:
        sizes = (f"micro_batch_size={24 // world_size // num_pieces}", f"parallel.type={kind}")
        config = tiny_fit(tmp_path / "run", shards, *settings, *sizes)
        for results in run_ranks(gradients, world_size, config):
            assert expected.keys() <= results.keys()
            for weight, gradient in results.items():
                wanted = expected.get(weight, torch.zeros_like(gradient))
                torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-10, msg=f"{kind} {world_size} {weight}")


@pytest.mark.parametrize(
    ("fusion", "topologies"),
    [("attention", RANKS), *(pytest.param(f, TOPOLOGIES, marks=pytest.mark.full) for f in FUSIONS)],
)
def test_one_curve_on_any_topology(fusion: str, topologies: Topologies, shards: Path, tmp_path: Path) -> None:
    settings = (f"fusion={fusion}", "epochs=5", *FROZEN)
    assert train(tiny_fit(tmp_path / "one", shards, *settings)) == 0
    expected = losses(tmp_path / "one")
    assert len(expected) == 20
    assert expected[-1] < expected[0]
    for world_size, num_pieces, kind in topologies:
        run_dir = tmp_path / f"{world_size}-{num_pieces}-{kind}"
        sizes = (f"micro_batch_size={24 // world_size // num_pieces}", f"parallel.type={kind}")
        config = tiny_fit(run_dir, shards, *settings, *sizes)
        assert run_ranks(train, world_size, config) == [0] * world_size
        assert losses(run_dir) == pytest.approx(expected, abs=1e-5)


def test_a_run_that_is_parted_ends_with_the_same_bits_and_goes_on_sharded(shards: Path, tmp_path: Path) -> None:
    assert train(tiny_fit(tmp_path / "whole", shards)) == 0
    parted = tiny_fit(tmp_path / "parted", shards, "checkpoint.every_steps=3")
    assert train_until(parted, step=5) == 1
    assert train(parted) == 0
    ends = [saved_tensors(newest_checkpoint(tmp_path / name), tmp_path / "pt") for name in ("whole", "parted")]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
    longer = replace(parted, epochs=3.0)
    sharded = replace(longer, parallel={"type": "fsdp2"})
    assert run_ranks(train, 2, sharded) == [0, 0]
    assert losses(tmp_path / "parted")[:8] == losses(tmp_path / "whole")


class _KilledError(RuntimeError):
    """Ends a run as a kill does: nothing after the last checkpoint is kept."""


def train_until(config: FitConfig, *, step: int) -> int:
    """Trains with a model that fails in a step, so that nothing after the last checkpoint is kept."""

    def build(config: Any, phase: Any, *, vocab_size: int) -> Any:
        objective = build_objective(config, phase, vocab_size=vocab_size)
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls > 2 * step:
                raise _KilledError

        heads: nn.Module = objective.model.head  # type: ignore[attr-defined]
        heads.register_forward_pre_hook(count)
        return objective

    with pytest.raises(_KilledError):
        train(config, objective=build)
    return 1
