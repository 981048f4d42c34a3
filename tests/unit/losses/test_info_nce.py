"""InfoNCE in one process: value and gradients against the textbook, numerics, and what ids mean."""

import math

import pytest
import torch
from reference.info_nce import info_nce
from torch import Tensor
from torch.nn import functional

from clipx.losses.info_nce import InfoNCELoss
from clipx.types import Embeddings


def embeddings(size: int, *, width: int = 6, dtype: torch.dtype = torch.float64, scale: float = 9.0) -> Embeddings:
    generator = torch.Generator().manual_seed(size)
    image_BD, text_BD = (
        functional.normalize(torch.randn(size, width, generator=generator, dtype=torch.float64), dim=1)
        .to(dtype)
        .requires_grad_()
        for _ in range(2)
    )
    wide = torch.promote_types(dtype, torch.float32)
    return Embeddings(
        image_BD=image_BD, text_BD=text_BD, logit_scale=torch.full((1,), scale, dtype=wide, requires_grad=True)
    )


def inputs(pairs: Embeddings) -> tuple[Tensor, Tensor, Tensor]:
    return pairs.image_BD, pairs.text_BD, pairs.logit_scale


@pytest.mark.parametrize("size", [1, 2, 7, 12])
@pytest.mark.parametrize("tile_size", [1, 3, 5, 4096])
@pytest.mark.parametrize(("ids", "positive_ids"), [(False, False), (True, False), (False, True), (True, True)])
def test_value_and_gradients_are_the_textbooks(size: int, tile_size: int, ids: bool, positive_ids: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    ids_B = torch.randint(0, 4, (size,), generator=generator) if ids else None
    positive_ids_B = torch.randint(0, 4, (size,), generator=generator) if positive_ids else None
    pairs = embeddings(size)
    value = InfoNCELoss(tile_size=tile_size)(pairs, ids_B=ids_B, positive_ids_B=positive_ids_B)
    expected = info_nce(*inputs(pairs), ids_G=ids_B, positive_ids_G=positive_ids_B)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    # A factor on the loss must reach every gradient (the trainer multiplies by W, fp16 by its loss scale).
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
    value = InfoNCELoss(tile_size=tile_size)(pairs, ids_B=ids_B, positive_ids_B=positive_ids_B)
    expected = info_nce(*inputs(pairs), ids_G=ids_B, positive_ids_G=positive_ids_B)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    found, wanted = (torch.autograd.grad(loss, inputs(pairs)) for loss in (value, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_gradients_are_finite_differences() -> None:
    ids_B, positive_ids_B = torch.tensor([0, 1, 0, 3, 4]), torch.tensor([0, 1, 2, 1, 4])

    def loss(image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor) -> Tensor:
        pairs = Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=logit_scale)
        return InfoNCELoss(tile_size=2)(pairs, ids_B=ids_B, positive_ids_B=positive_ids_B)

    assert torch.autograd.gradcheck(loss, inputs(embeddings(5)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_narrow_inputs_lose_nothing_in_the_loss(dtype: torch.dtype, scale: float, autocast: bool) -> None:
    pairs = embeddings(200, width=32, dtype=dtype, scale=scale)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = InfoNCELoss(tile_size=64)(pairs)
        found = torch.autograd.grad(value, inputs(pairs))
    expected = info_nce(*inputs(pairs))
    wanted = torch.autograd.grad(expected, inputs(pairs))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert [gradient.dtype for gradient in found] == [dtype, dtype, torch.float32]
    assert found[2].item() == pytest.approx(wanted[2].item(), rel=1e-4)
    for gradient, exact in zip(found[:2], wanted[:2], strict=True):
        difference = (gradient.double() - exact.double()).norm() / exact.double().norm()
        assert difference < 2 * torch.finfo(dtype).eps + 1e-5


def test_large_logits_stay_finite() -> None:
    pairs = embeddings(50, dtype=torch.float32, scale=1e4)
    value = InfoNCELoss(tile_size=8)(pairs)
    assert value.item() == pytest.approx(info_nce(*inputs(pairs)).item(), rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, inputs(pairs)))


def test_the_same_sample_twice_is_not_its_own_negative() -> None:
    direction_BD = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    pairs = Embeddings(image_BD=direction_BD, text_BD=direction_BD, logit_scale=torch.tensor([5.0]))
    assert InfoNCELoss()(pairs).item() == pytest.approx(math.log(2))
    assert InfoNCELoss()(pairs, ids_B=torch.tensor([7, 7])).item() == pytest.approx(0, abs=1e-7)


def test_several_positives_share_the_probability() -> None:
    same_BD = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    pairs = Embeddings(image_BD=same_BD, text_BD=same_BD, logit_scale=torch.tensor([20.0]))
    # Two of three get probability 1/2 for each of their two positives, the third is sure: (ln 2 + ln 2 + 0) / 3.
    value = InfoNCELoss()(pairs, ids_B=torch.tensor([7, 7, 8]), positive_ids_B=torch.tensor([1, 1, 2]))
    assert value.item() == pytest.approx(2 / 3 * math.log(2), rel=1e-6)


def test_a_bias_gets_a_zero_gradient_and_changes_nothing() -> None:
    pairs = embeddings(4)
    bias = torch.full((1,), -10.0, requires_grad=True)
    value = InfoNCELoss()(Embeddings(**vars(pairs) | {"logit_bias": bias}))
    assert value.item() == InfoNCELoss()(pairs).item()
    assert torch.autograd.grad(value, bias)[0].item() == 0
