"""Distillation on several ranks and in micro-batches, by itself and as an objective trains with it: the textbook's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from distributed.objectives import Grads, step_gradients, textbook_gradients, write_scored
from distributed.ranks import run_ranks
from distributed.test_losses import LargestTensor
from random_teachers import TEACHERS, WEIGHT, build_taught, for_textbook, random_rows, taught_rows
from reference.distill import distill
from reference.info_nce import info_nce
from reference.sigmoid import sigmoid
from tiny import metrics, tiny_config
from torch import Tensor

from clipx.config.schema import RunConfig
from clipx.data.teacher_columns import image_column, text_column
from clipx.losses.distill import DistillLoss
from clipx.train.trainer import train
from clipx.types import Batch, Embeddings

KINDS = list(TEACHERS.values())
BATCH, WIDTH = 7, 6  # of a rank; odd
TOPOLOGIES = [(1, 3, "ddp"), (2, 1, "ddp"), (2, 3, "fsdp2"), (4, 1, "ddp")]  # W, k


def student(size: int, dtype: torch.dtype = torch.float64) -> Embeddings:
    image_GD, text_GD = (random_rows(size, WIDTH, seed).to(dtype).requires_grad_() for seed in (1, 2))
    scale = torch.full((1,), 30.0, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    return Embeddings(image_BD=image_GD, text_BD=text_GD, logit_scale=scale)


def own_part(size: int, dtype: torch.dtype = torch.float64) -> tuple[Embeddings, dict[str, Tensor]]:
    """This rank's pairs of all ranks', and what the teachers said of them."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    whole, rows = student(size * world_size, dtype), taught_rows(size * world_size, KINDS)
    image_BD, text_BD = (x.detach().chunk(world_size)[rank].requires_grad_() for x in (whole.image_BD, whole.text_BD))
    pairs = Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=whole.logit_scale)
    return pairs, {name: side.chunk(world_size)[rank] for name, side in rows.items()}


def shares(exchange: Literal["gather", "ring"], tile_size: int) -> list[Tensor]:
    """This rank's share, those of each teacher, and its gradients for images, texts and scale."""
    pairs, rows = own_part(BATCH)
    loss = DistillLoss(KINDS, exchange=exchange, tile_size=tile_size)
    share, of_teachers_K = loss(pairs, **rows, group=dist.group.WORLD)
    leaves = (pairs.image_BD, pairs.text_BD, pairs.logit_scale)
    return [share.detach(), of_teachers_K, *torch.autograd.grad(share, leaves)]


@pytest.mark.parametrize(
    ("world_size", "exchange", "tile_size"),
    [
        (1, "gather", 5),
        (2, "gather", 3),
        (4, "ring", 5),
        pytest.param(2, "ring", 5, marks=pytest.mark.full),
        pytest.param(4, "gather", 5, marks=pytest.mark.full),
    ],
)
def test_loss_and_every_gradient_are_the_textbooks(
    world_size: int, exchange: Literal["gather", "ring"], tile_size: int
) -> None:
    ranks = run_ranks(shares, world_size, exchange, tile_size)
    values, of_teachers, images, texts, scales = zip(*ranks, strict=True)
    whole, rows = student(BATCH * world_size), taught_rows(BATCH * world_size, KINDS)
    leaves = (whole.image_BD, whole.text_BD, whole.logit_scale)
    expected, of_each_K = distill(*leaves, teachers=for_textbook(rows, KINDS))
    found = [sum(values), sum(of_teachers), torch.cat(images), torch.cat(texts), sum(scales)]
    wanted = [expected.detach(), of_each_K, *torch.autograd.grad(expected, leaves)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    assert wanted[-1].abs() > 1e-6  # an unused multiplier would compare equal


def compiled_step() -> list[Tensor]:
    """A compiled caller's gradients beside the plain one's."""
    pairs, rows = own_part(5, torch.float32)
    loss, group = DistillLoss(KINDS, tile_size=3), dist.group.WORLD

    def step(image_BD: Tensor, text_BD: Tensor) -> Tensor:
        given = Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=pairs.logit_scale)
        share, of_teachers_K = loss(given, **rows, group=group)
        return share + 0 * of_teachers_K.sum()

    inputs = (pairs.image_BD, pairs.text_BD)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    return [gradient for call in (step, compiled) for gradient in torch.autograd.grad(call(*inputs), inputs)]


def test_a_compiled_caller_goes_on_on_several_ranks() -> None:
    for image, text, compiled_image, compiled_text in run_ranks(compiled_step, 2):
        assert torch.equal(image, compiled_image)
        assert torch.equal(text, compiled_text)


def largest_tensors(exchange: Literal["gather", "ring"], size: int, tile_size: int) -> dict[torch.dtype, int]:
    pairs, rows = own_part(size, torch.bfloat16)
    rows = {name: side.bfloat16() for name, side in rows.items()}
    with LargestTensor() as seen:
        share, _ = DistillLoss(KINDS, exchange=exchange, tile_size=tile_size)(pairs, **rows, group=dist.group.WORLD)
        share.backward()
    return seen.elements


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_nothing_is_larger_than_a_tile_or_the_inputs(exchange: Literal["gather", "ring"]) -> None:
    world_size, size, tile_size = 4, 96, 16
    width = sum(teacher.width for teacher in KINDS)
    for elements in run_ranks(largest_tensors, world_size, exchange, size, tile_size):
        # Gathered in the student's dtype, once, or never more than one rank's.
        assert elements[torch.bfloat16] == (world_size if exchange == "gather" else 1) * size * width
        sums = world_size * size * (1 + 2 * len(KINDS))
        assert elements[torch.float32] <= max(tile_size**2, size * WIDTH, sums, 2 * tile_size * width)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scored(tmp_path_factory.mktemp("scored"))


def config_of(run_dir: Path, shards: Path, *overrides: str) -> RunConfig:
    return tiny_config(run_dir, shards, "loss.tile_size=5", *overrides)


def textbook(outputs: Embeddings, batch: Batch) -> Tensor:
    """The whole global batch's loss; of several captions each with its image."""
    leaves = (outputs.image_BD, outputs.text_BD, outputs.logit_scale)
    captions = batch.captions_per_image
    ids_G = batch.sample_id_I.repeat_interleave(captions)
    kinds: Mapping[str, Any] = {"ids_G": ids_G, "positive_ids_G": ids_G if captions > 1 else None}
    with_bias = outputs.logit_bias is not None
    contrastive = sigmoid(*leaves, outputs.logit_bias, **kinds) if with_bias else info_nce(*leaves, **kinds)  # type: ignore[arg-type]
    teachers = [
        (
            batch.columns[image_column(name)].repeat_interleave(captions, 0),
            batch.columns[text_column(name)],
            one.logit_scale,
            one.weight,
        )
        for name, one in TEACHERS.items()
    ]
    return contrastive + WEIGHT * distill(*leaves, teachers=teachers)[0]


def gradients(config: RunConfig) -> Grads:
    return step_gradients(config, build_taught)


def expected_gradients(config: RunConfig) -> Grads:
    return textbook_gradients(config, build_taught, textbook)


SIGMOID = ("loss.type=sigmoid", "model.init_logit_bias=-3")


@pytest.mark.parametrize(
    ("overrides", "topologies"),
    [
        pytest.param((), [(2, 3, "ddp")], id="plain", marks=pytest.mark.full),
        pytest.param((), TOPOLOGIES, id="every topology", marks=pytest.mark.full),
        pytest.param(("loss.exchange=ring",), [(2, 3, "ddp")], id="ring", marks=pytest.mark.full),
        pytest.param(("data.captions_per_image=2",), [(2, 3, "ddp")], id="two captions"),
        pytest.param(SIGMOID, [(2, 3, "ddp")], id="sigmoid", marks=pytest.mark.full),
    ],
)
def test_gradients_of_the_objective_are_the_textbooks(
    overrides: tuple[str, ...], topologies: list[tuple[int, int, str]], shards: Path, tmp_path: Path
) -> None:
    (expected,) = run_ranks(expected_gradients, 1, config_of(tmp_path, shards, "micro_batch_size=24", *overrides))
    assert expected["image_tower.projection.weight"].abs().max() > 1e-6
    for world_size, num_pieces, kind in topologies:
        size = 24 // world_size // num_pieces
        config = config_of(tmp_path, shards, f"micro_batch_size={size}", f"parallel.type={kind}", *overrides)
        for results in run_ranks(gradients, world_size, config):
            assert expected.keys() == results.keys()
            for weight, gradient in results.items():
                name = f"{kind} {world_size} {num_pieces} {weight}"
                torch.testing.assert_close(gradient, expected[weight], rtol=0, atol=1e-10, msg=name)


def train_taught(config: RunConfig) -> int:
    return train(config, objective=build_taught)


def test_a_run_tells_of_each_loss_and_of_each_teacher(shards: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", shards, "micro_batch_size=6", "precision=bf16", "steps=4")
    assert run_ranks(train_taught, 2, config) == [0, 0]
    for row in metrics(tmp_path / "run"):
        assert row["loss"] == pytest.approx(row["loss_contrastive"] + WEIGHT * row["loss_distill"], rel=1e-5)
        mean = (3 * row["distill_large"] + row["distill_small"]) / 4
        assert row["loss_distill"] == pytest.approx(mean, rel=1e-5)
        assert row["distill_small"] > 0
