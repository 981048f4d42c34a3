"""The loss and its gradients do not depend on the tile size, the order of the pairs or the number of ranks."""

from typing import Literal

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from clipx.losses import ContrastiveLoss
from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss
from clipx.types import Embeddings

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
LOSSES: dict[str, type[InfoNCELoss] | type[SigmoidLoss]] = {"info_nce": InfoNCELoss, "sigmoid": SigmoidLoss}

either_loss = pytest.mark.parametrize("loss_name", LOSSES)
seeds = st.integers(0, 2**32)
tile_sizes = st.integers(1, 40)


def draw_pairs(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit vectors, ids and positive ids, some of them equal."""
    generator = torch.Generator().manual_seed(seed)
    image_GD, text_GD = functional.normalize(
        torch.randn(2, size, 5, generator=generator, dtype=torch.float64), dim=-1
    ).unbind()
    ids_G, positive_ids_G = torch.randint(0, 2 * size, (2, size), generator=generator).unbind()
    return image_GD, text_GD, ids_G, positive_ids_G


def value_and_gradients(loss: ContrastiveLoss, parts: tuple[Tensor, ...], group: object = None) -> list[Tensor]:
    """The share, and the gradients for images, texts, scale and bias."""
    image_BD, text_BD = (part.clone().requires_grad_() for part in parts[:2])
    scale, bias = (torch.full((1,), value, dtype=torch.float64, requires_grad=True) for value in (12.0, -4.0))
    pairs = Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=scale, logit_bias=bias)
    share = loss(pairs, group=group, ids_B=parts[2], positive_ids_B=parts[3])
    return [share.detach(), *torch.autograd.grad(share, (image_BD, text_BD, scale, bias))]


@either_loss
@settings(max_examples=40)
@given(seed=seeds, size=st.integers(1, 33), tile_size=tile_sizes)
def test_unchanged_by_tile_size(loss_name: str, seed: int, size: int, tile_size: int) -> None:
    pairs = draw_pairs(seed, size)
    tiled = value_and_gradients(LOSSES[loss_name](tile_size=tile_size), pairs)
    whole = value_and_gradients(LOSSES[loss_name](tile_size=4096), pairs)
    torch.testing.assert_close(tiled, whole, **CLOSE)


@either_loss
@settings(max_examples=40)
@given(seed=seeds, size=st.integers(1, 33), tile_size=tile_sizes, data=st.data())
def test_unchanged_by_the_order_of_the_pairs(
    loss_name: str, seed: int, size: int, tile_size: int, data: st.DataObject
) -> None:
    pairs = draw_pairs(seed, size)
    order_G = torch.tensor(data.draw(st.permutations(range(size))))
    loss = LOSSES[loss_name](tile_size=tile_size)
    straight = value_and_gradients(loss, pairs)
    permuted = value_and_gradients(loss, tuple(part[order_G] for part in pairs))
    straight[1:3] = [gradient[order_G] for gradient in straight[1:3]]
    torch.testing.assert_close(permuted, straight, **CLOSE)


def on_this_rank(
    loss_name: str, tile_size: int, exchange: Literal["gather", "ring"], pairs: tuple[Tensor, ...]
) -> list[Tensor]:
    size = len(pairs[0]) // dist.get_world_size()
    here = slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)
    loss = LOSSES[loss_name](tile_size=tile_size, exchange=exchange)
    return value_and_gradients(loss, tuple(part[here] for part in pairs), dist.group.WORLD)


@either_loss
@settings(max_examples=8)
@given(
    seed=seeds,
    size=st.integers(1, 9),
    world_size=st.integers(2, 4),
    tile_size=st.integers(1, 20),
    exchange=st.sampled_from(["gather", "ring"]),
)
def test_unchanged_by_the_number_of_ranks(
    loss_name: str, seed: int, size: int, world_size: int, tile_size: int, exchange: Literal["gather", "ring"]
) -> None:
    pairs = draw_pairs(seed, size * world_size)
    ranks = run_ranks(on_this_rank, world_size, loss_name, tile_size, exchange, pairs)
    shares, images, texts, scales, biases = zip(*ranks, strict=True)
    together = [sum(shares), torch.cat(images), torch.cat(texts), sum(scales), sum(biases)]
    alone = value_and_gradients(LOSSES[loss_name](), pairs)
    torch.testing.assert_close(together, alone, **CLOSE)
