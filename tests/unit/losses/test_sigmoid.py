"""The sigmoid loss in one process: value and gradients against the textbook, numerics, and what ids mean."""

import math

import pytest
import torch
from reference.sigmoid import sigmoid
from torch import Tensor
from torch.nn import functional

from clipx.losses.sigmoid import SigmoidLoss
from clipx.types import Embeddings


def embeddings(size: int, *, width: int = 6, dtype: torch.dtype = torch.float64) -> Embeddings:
    generator = torch.Generator().manual_seed(size)
    image_BD, text_BD = (
        functional.normalize(torch.randn(size, width, generator=generator, dtype=torch.float64), dim=1)
        .to(dtype)
        .requires_grad_()
        for _ in range(2)
    )
    wide = torch.promote_types(dtype, torch.float32)
    scale, bias = (torch.full((1,), value, dtype=wide, requires_grad=True) for value in (10.0, -3.0))
    return Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=scale, logit_bias=bias)


def inputs(pairs: Embeddings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert pairs.logit_bias is not None
    return pairs.image_BD, pairs.text_BD, pairs.logit_scale, pairs.logit_bias


@pytest.mark.parametrize("size", [1, 2, 7, 12])
@pytest.mark.parametrize("tile_size", [1, 3, 5, 4096])
@pytest.mark.parametrize(("ids", "positive_ids"), [(False, False), (True, False), (False, True), (True, True)])
def test_value_and_gradients_are_the_textbooks(size: int, tile_size: int, ids: bool, positive_ids: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    ids_B = torch.randint(0, 4, (size,), generator=generator) if ids else None
    positive_ids_B = torch.randint(0, 4, (size,), generator=generator) if positive_ids else None
    pairs = embeddings(size)
    value = SigmoidLoss(tile_size=tile_size)(pairs, ids_B=ids_B, positive_ids_B=positive_ids_B)
    expected = sigmoid(*inputs(pairs), ids_G=ids_B, positive_ids_G=positive_ids_B)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(3 * value, inputs(pairs))
    wanted = torch.autograd.grad(3 * expected, inputs(pairs))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(11, 1), (11, 2), (11, 2, 3)])
@pytest.mark.parametrize("positive_ids", [False, True])
@pytest.mark.parametrize("tile_size", [3, 4096])
def test_one_equal_id_of_several_is_enough(shape: tuple[int, ...], positive_ids: bool, tile_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ids_B = torch.randint(0, 9, shape, generator=generator)
    if len(shape) > 2:
        ids_B[:, 1, 0] = ids_B[:, 0, 0]  # a pair's own
    positive_ids_B = torch.randint(0, 4, (11,), generator=generator) if positive_ids else None
    pairs = embeddings(11)
    value = SigmoidLoss(tile_size=tile_size)(pairs, ids_B=ids_B, positive_ids_B=positive_ids_B)
    expected = sigmoid(*inputs(pairs), ids_G=ids_B, positive_ids_G=positive_ids_B)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    found, wanted = (torch.autograd.grad(loss, inputs(pairs)) for loss in (value, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_gradients_are_finite_differences() -> None:
    ids_B, positive_ids_B = torch.tensor([0, 1, 0, 3, 4]), torch.tensor([0, 1, 2, 1, 4])

    def loss(image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
        pairs = Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=logit_scale, logit_bias=logit_bias)
        return SigmoidLoss(tile_size=2)(pairs, ids_B=ids_B, positive_ids_B=positive_ids_B)

    assert torch.autograd.gradcheck(loss, inputs(embeddings(5)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_narrow_inputs_lose_nothing_in_the_loss(dtype: torch.dtype, autocast: bool) -> None:
    pairs = embeddings(200, width=32, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = SigmoidLoss(tile_size=64)(pairs)
        found = torch.autograd.grad(value, inputs(pairs))
    expected = sigmoid(*inputs(pairs))
    wanted = torch.autograd.grad(expected, inputs(pairs))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert [gradient.dtype for gradient in found] == [dtype, dtype, torch.float32, torch.float32]
    for gradient, exact in zip(found[2:], wanted[2:], strict=True):
        assert gradient.item() == pytest.approx(exact.item(), rel=1e-4)
    for gradient, exact in zip(found[:2], wanted[:2], strict=True):
        difference = (gradient.double() - exact.double()).norm() / exact.double().norm()
        assert difference < 2 * torch.finfo(dtype).eps + 1e-5


def test_the_same_sample_twice_is_left_out_of_the_sum() -> None:
    one_BD = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    zero = torch.zeros(1)
    pairs = Embeddings(image_BD=one_BD, text_BD=one_BD, logit_scale=zero, logit_bias=zero)
    # Every decision at logit 0 costs ln 2: four of them over two pairs, or the two true pairs alone.
    assert SigmoidLoss()(pairs).item() == pytest.approx(2 * math.log(2))
    assert SigmoidLoss()(pairs, ids_B=torch.tensor([7, 7])).item() == pytest.approx(math.log(2))


def test_without_a_bias_it_says_what_is_missing() -> None:
    one_BD = torch.ones(1, 1)
    with pytest.raises(AssertionError, match="init_logit_bias"):
        SigmoidLoss()(Embeddings(image_BD=one_BD, text_BD=one_BD, logit_scale=torch.ones(1)))
