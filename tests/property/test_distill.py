"""Distillation for any pairs: unchanged by tiles, order and ranks, never negative, and 0 where nothing is to learn."""

from typing import Literal

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from random_teachers import TEACHERS, random_rows
from torch import Tensor

from clipx.losses.distill import DistillLoss, Teacher
from clipx.types import Embeddings

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
KINDS = list(TEACHERS.values())
SIDES = ("image_BE", "text_BE")

seeds = st.integers(0, 2**32)
sizes = st.integers(1, 33)
tile_sizes = st.integers(1, 40)


def draw_pairs(seed: int, size: int) -> list[Tensor]:
    """Images and texts of the student, then of the teachers."""
    taught = [torch.cat([random_rows(size, one.width, seed + 5 + k) for k, one in enumerate(KINDS)], 1) for _ in "it"]
    return [*(random_rows(size, 5, seed + number) for number in range(2)), taught[0], taught[1].flip(0)]


def value_and_gradients(loss: DistillLoss, parts: list[Tensor], group: object = None) -> list[Tensor]:
    """The share, those of the teachers, and the gradients for images, texts and scale."""
    image_BD, text_BD = (part.clone().requires_grad_() for part in parts[:2])
    scale = torch.full((1,), 12.0, dtype=torch.float64, requires_grad=True)
    pairs = Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=scale)
    share, of_teachers_K = loss(pairs, **dict(zip(SIDES, parts[2:], strict=True)), group=group)  # type: ignore[arg-type]
    return [share.detach(), of_teachers_K, *torch.autograd.grad(share, (image_BD, text_BD, scale))]


@settings(max_examples=40)
@given(seed=seeds, size=sizes, tile_size=tile_sizes)
def test_unchanged_by_tile_size(seed: int, size: int, tile_size: int) -> None:
    pairs = draw_pairs(seed, size)
    tiled = value_and_gradients(DistillLoss(KINDS, tile_size=tile_size), pairs)
    torch.testing.assert_close(tiled, value_and_gradients(DistillLoss(KINDS), pairs), **CLOSE)


@settings(max_examples=40)
@given(seed=seeds, size=sizes, tile_size=tile_sizes, data=st.data())
def test_unchanged_by_the_order_of_the_pairs(seed: int, size: int, tile_size: int, data: st.DataObject) -> None:
    pairs, loss = draw_pairs(seed, size), DistillLoss(KINDS, tile_size=tile_size)
    order_G = torch.tensor(data.draw(st.permutations(range(size))))
    straight = value_and_gradients(loss, pairs)
    permuted = value_and_gradients(loss, [part[order_G] for part in pairs])
    straight[2:4] = [gradient[order_G] for gradient in straight[2:4]]
    torch.testing.assert_close(permuted, straight, **CLOSE)


@settings(max_examples=40)
@given(seed=seeds, size=sizes, tile_size=tile_sizes, factor=st.floats(0.1, 10.0))
def test_only_the_ratio_of_weights_counts_and_divergences_add_up(
    seed: int, size: int, tile_size: int, factor: float
) -> None:
    pairs = draw_pairs(seed, size)
    share, of_teachers_K, *gradients = value_and_gradients(DistillLoss(KINDS, tile_size=tile_size), pairs)
    assert of_teachers_K.min() > -1e-12
    torch.testing.assert_close(share, (3 * of_teachers_K[0] + of_teachers_K[1]) / 4, **CLOSE)
    scaled = [Teacher(width=one.width, logit_scale=one.logit_scale, weight=factor * one.weight) for one in KINDS]
    torch.testing.assert_close(value_and_gradients(DistillLoss(scaled), pairs)[2:], gradients, rtol=1e-9, atol=1e-12)


@settings(max_examples=40)
@given(seed=seeds, size=sizes, tile_size=tile_sizes, scale=st.floats(0.0, 100.0))
def test_nothing_is_to_be_learned_from_oneself(seed: int, size: int, tile_size: int, scale: float) -> None:
    """Nor from a teacher whose rows are turned together: similarities are the same."""
    image_BD, text_BD, *_ = draw_pairs(seed, size)
    turned, _ = torch.linalg.qr(random_rows(5, 5, seed + 3))
    pairs = Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=torch.tensor([scale], dtype=torch.float64))
    loss = DistillLoss([Teacher(width=5, logit_scale=scale)], tile_size=tile_size)
    for own in ((image_BD, text_BD), (image_BD @ turned, text_BD @ turned)):
        assert loss(pairs, image_BE=own[0], text_BE=own[1])[0].item() == pytest.approx(0, abs=1e-11)


def on_this_rank(tile_size: int, exchange: Literal["gather", "ring"], pairs: list[Tensor]) -> list[Tensor]:
    parts = [part.chunk(dist.get_world_size())[dist.get_rank()] for part in pairs]
    return value_and_gradients(DistillLoss(KINDS, tile_size=tile_size, exchange=exchange), parts, dist.group.WORLD)


@settings(max_examples=8)
@given(
    seed=seeds,
    size=st.integers(1, 9),
    world_size=st.integers(2, 4),
    tile_size=st.integers(1, 20),
    exchange=st.sampled_from(["gather", "ring"]),
)
def test_unchanged_by_the_number_of_ranks(
    seed: int, size: int, world_size: int, tile_size: int, exchange: Literal["gather", "ring"]
) -> None:
    pairs = draw_pairs(seed, size * world_size)
    ranks = run_ranks(on_this_rank, world_size, tile_size, exchange, pairs)
    shares, of_teachers, images, texts, scales = zip(*ranks, strict=True)
    together = [sum(shares), sum(of_teachers), torch.cat(images), torch.cat(texts), sum(scales)]
    torch.testing.assert_close(together, value_and_gradients(DistillLoss(KINDS), pairs), **CLOSE)
