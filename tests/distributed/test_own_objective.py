"""examples/own_objective.py, an objective that no file of clipx knows, trains as clipx's own do."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.objectives import Grads, step_gradients, textbook_gradients, write_scored
from distributed.ranks import run_ranks
from tiny import losses, metrics, saved_tensors, tiny_config
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

import clipx
from clipx.config.schema import RunConfig
from clipx.train.step import Stepper
from clipx.train.trainer import train
from clipx.types import Batch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from own_objective import ScoredCaptions

TOPOLOGIES = [(1, 1), (1, 3), (2, 1), (2, 3)]  # W, k
BAD = 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scored(tmp_path_factory.mktemp("scored"))


def config_of(run_dir: Path, shards: Path, world_size: int, num_pieces: int, *overrides: str) -> RunConfig:
    size = f"micro_batch_size={24 // world_size // num_pieces}"
    return tiny_config(run_dir, shards, size, "data.max_bad_fraction=0.1", *overrides)


def train_own(config: RunConfig, kill_at: int | None = None) -> int:
    """Trains; the process of rank 0 dies before the step `kill_at`."""
    call = Stepper.__call__

    def killed(self: Stepper, *arguments: object, step: int, **options: object) -> object:
        if step + 1 == kill_at and self.runtime.is_main:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(self, *arguments, step=step, **options)  # type: ignore[arg-type]

    Stepper.__call__ = killed  # type: ignore[method-assign, assignment]
    return train(config, objective=ScoredCaptions)


def gradients(config: RunConfig) -> Grads:
    return step_gradients(config, ScoredCaptions)


def textbook(config: RunConfig) -> Grads:
    def loss(outputs: Any, batch: Batch) -> Tensor:
        logits = outputs.logit_scale * outputs.image_BD @ outputs.text_BD.T
        score_loss = mse_loss(outputs.predicted_B, batch.columns["score_B"].double())
        return cross_entropy(logits, torch.arange(len(batch))) + 0.5 * score_loss

    return textbook_gradients(config, ScoredCaptions, loss)


@pytest.mark.parametrize(
    ("world_size", "num_pieces"),
    [(1, 3), *(pytest.param(*sizes, marks=pytest.mark.full) for sizes in TOPOLOGIES if sizes != (1, 3))],
)
def test_gradients_are_the_textbooks(world_size: int, num_pieces: int, shards: Path, tmp_path: Path) -> None:
    expected = run_ranks(textbook, 1, config_of(tmp_path / "run", shards, 1, 1))[0]
    assert "head.weight" in expected
    for results in run_ranks(gradients, world_size, config_of(tmp_path / "run", shards, world_size, num_pieces)):
        assert results.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(results[name], gradient, rtol=0, atol=1e-10, msg=name)


@pytest.mark.full
def test_trains_alike_on_any_topology_and_its_figures_are_shown(shards: Path, tmp_path: Path) -> None:
    rows = []
    for world_size, num_pieces in TOPOLOGIES:
        folder = tmp_path / f"{world_size}x{num_pieces}"
        config = config_of(folder, shards, world_size, num_pieces)
        assert run_ranks(train_own, world_size, config) == [0] * world_size
        rows.append(metrics(folder))
    for row in rows[0]:
        assert row["loss"] == pytest.approx(row["loss_captions"] + 0.5 * row["loss_score"], abs=1e-5)
    for name in ("loss", "loss_captions", "loss_score", "score_error", "logit_scale", "grad_norm"):
        curves = [[row[name] for row in run] for run in rows]
        for curve in curves[1:]:
            assert curve == pytest.approx(curves[0], rel=1e-4), name
    assert rows[0][-1]["score_error"] < rows[0][0]["score_error"]
    (bad,) = [json.loads(line) for line in (tmp_path / "1x1" / "quarantine.jsonl").read_text().splitlines()]
    assert (bad["key"], bad["reason"]) == (f"{BAD:06d}", "no score in its json")


def test_trains_in_half_precision(shards: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", shards, 2, 3, "precision=bf16", "steps=3")
    assert run_ranks(train_own, 2, config) == [0, 0]
    assert [row["skipped_steps"] for row in metrics(tmp_path / "run")] == [0, 0, 0]


@pytest.mark.full
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_and_started_again_nothing_differs(world_size: int, shards: Path, tmp_path: Path) -> None:
    undisturbed, killed = (
        config_of(tmp_path / name, shards, world_size, 3, "steps=12", "checkpoint.every_steps=4")
        for name in ("undisturbed", "killed")
    )
    assert run_ranks(train_own, world_size, undisturbed) == [0] * world_size
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run_ranks(train_own, world_size, killed, 7)
    assert run_ranks(train_own, world_size, killed) == [0] * world_size
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")
    one, other = (
        saved_tensors(tmp_path / name / "checkpoints" / "step-00000012", tmp_path / "scratch")
        for name in ("undisturbed", "killed")
    )
    assert one.keys() == other.keys()
    assert "model/head.weight" in one
    assert all(one[name].equal(other[name]) for name in one)
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)  # the encoders are an ordinary model
    assert clipx.load(tmp_path / "killed").encode_image(image).shape == (1, 16)


def test_is_short() -> None:
    path = Path(__file__).parents[2] / "examples" / "own_objective.py"
    assert len(path.read_text().splitlines()) <= 80
