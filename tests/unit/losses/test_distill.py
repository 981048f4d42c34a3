"""Distillation in one process: value and gradients against the textbook, numerics, and what repeated rows mean."""

import math
from collections.abc import Sequence

import pytest
import torch
from random_teachers import TEACHERS, for_textbook, random_rows, taught_rows
from reference.distill import distill
from torch import Tensor

from clipx.losses.distill import DistillLoss, Teacher
from clipx.types import Embeddings

WIDE, NARROW = TEACHERS.values()


def student(size: int, *, width: int = 6, dtype: torch.dtype = torch.float64, scale: float = 9.0) -> Embeddings:
    image_BD, text_BD = (random_rows(size, width, seed).to(dtype).requires_grad_() for seed in (1, 2))
    wide = torch.promote_types(dtype, torch.float32)
    return Embeddings(
        image_BD=image_BD, text_BD=text_BD, logit_scale=torch.full((1,), scale, dtype=wide, requires_grad=True)
    )


def textbook(pairs: Embeddings, rows: dict[str, Tensor], teachers: Sequence[Teacher]) -> tuple[Tensor, Tensor]:
    return distill(*inputs(pairs), teachers=for_textbook(rows, teachers))


def inputs(pairs: Embeddings) -> tuple[Tensor, Tensor, Tensor]:
    return pairs.image_BD, pairs.text_BD, pairs.logit_scale


@pytest.mark.parametrize("size", [1, 2, 7, 12])
@pytest.mark.parametrize("tile_size", [1, 3, 5, 4096])
@pytest.mark.parametrize("teachers", [[WIDE], [WIDE, NARROW]])
def test_value_and_gradients_are_the_textbooks(size: int, tile_size: int, teachers: list[Teacher]) -> None:
    pairs, rows = student(size), taught_rows(size, teachers)
    value, of_teachers_K = DistillLoss(teachers, tile_size=tile_size)(pairs, **rows)
    expected, of_each = textbook(pairs, rows, teachers)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of_teachers_K, of_each, rtol=1e-12, atol=1e-12)
    assert not of_teachers_K.requires_grad
    # A factor on the loss must reach every gradient (the trainer multiplies by W, fp16 by its loss scale).
    found = torch.autograd.grad(3 * value, inputs(pairs))
    wanted = torch.autograd.grad(3 * expected, inputs(pairs))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_gradients_are_finite_differences_and_teachers_have_none() -> None:
    rows = {name: side.requires_grad_() for name, side in taught_rows(5, [WIDE, NARROW]).items()}

    def loss(image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor) -> Tensor:
        pairs = Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=logit_scale)
        return DistillLoss([WIDE, NARROW], tile_size=2)(pairs, **rows)[0]

    assert torch.autograd.gradcheck(loss, inputs(student(5)))
    loss(*inputs(student(5))).backward()
    assert all(side.grad is None for side in rows.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_narrow_inputs_lose_nothing_in_the_loss(dtype: torch.dtype, scale: float, autocast: bool) -> None:
    teachers = [Teacher(width=40, logit_scale=50.0), Teacher(width=24, logit_scale=100.0, weight=0.5)]
    pairs, rows = student(200, width=32, dtype=dtype, scale=scale), taught_rows(200, teachers)
    rows = {name: side.to(dtype) for name, side in rows.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value, _ = DistillLoss(teachers, tile_size=64)(pairs, **rows)
        found = torch.autograd.grad(value, inputs(pairs))
    expected, _ = textbook(pairs, rows, teachers)
    wanted = torch.autograd.grad(expected, inputs(pairs))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert [gradient.dtype for gradient in found] == [dtype, dtype, torch.float32]
    assert found[2].item() == pytest.approx(wanted[2].item(), rel=1e-4)
    for gradient, exact in zip(found[:2], wanted[:2], strict=True):
        difference = (gradient.double() - exact.double()).norm() / exact.double().norm()
        assert difference < 2 * torch.finfo(dtype).eps + 1e-5


def test_large_logits_stay_finite() -> None:
    teachers = [Teacher(width=9, logit_scale=1e4)]
    pairs, rows = student(50, dtype=torch.float32, scale=1e4), taught_rows(50, teachers)
    value, _ = DistillLoss(teachers, tile_size=8)(pairs, **rows)
    assert value.item() == pytest.approx(textbook(pairs, rows, teachers)[0].item(), rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, inputs(pairs)))


def test_who_is_its_own_teacher_has_nothing_to_learn() -> None:
    pairs = student(20)
    itself = [Teacher(width=6, logit_scale=9.0)]
    value, _ = DistillLoss(itself, tile_size=7)(pairs, image_BE=pairs.image_BD, text_BE=pairs.text_BD)
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert all(gradient.abs().max() < 1e-14 for gradient in torch.autograd.grad(value, inputs(pairs)))


def test_a_student_that_knows_nothing_is_as_far_as_the_teacher_is_sure() -> None:
    """A sure teacher against equal shares of G entries: log G, both ways."""
    same_BD = torch.ones(8, 1, dtype=torch.float64)
    pairs = Embeddings(image_BD=same_BD, text_BD=same_BD, logit_scale=torch.tensor([5.0]).double())
    sure = torch.eye(8, dtype=torch.float64)
    value, _ = DistillLoss([Teacher(width=8, logit_scale=100.0)])(pairs, image_BE=sure, text_BE=sure)
    assert value.item() == pytest.approx(math.log(8), rel=1e-9)


def test_several_captions_give_the_divergence_over_distinct_images() -> None:
    """Rows of repeated images are the rows of the images; columns over them have the divergence of distinct ones."""
    images, texts, scale = random_rows(4, 6, 1), random_rows(12, 6, 2), torch.tensor([9.0]).double()
    taught_images, taught_texts = random_rows(4, 9, 3), random_rows(12, 9, 4)
    pairs = Embeddings(image_BD=images.repeat_interleave(3, 0), text_BD=texts, logit_scale=scale)
    value, _ = DistillLoss([WIDE], tile_size=5)(
        pairs, image_BE=taught_images.repeat_interleave(3, 0), text_BE=taught_texts
    )
    student_IB, teacher_IB = 9 * images @ texts.T, WIDE.logit_scale * taught_images @ taught_texts.T
    both = [
        (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean()
        for s, t in ((student_IB, teacher_IB), (student_IB.T, teacher_IB.T))
    ]
    torch.testing.assert_close(value, sum(both) / 2, rtol=1e-12, atol=1e-12)


def test_a_sample_that_is_there_twice_is_no_reason_to_tell_it_apart() -> None:
    """The teacher gives both the same share, and so a student that does has nothing to learn."""
    images, texts = (side[[0, 1, 1, 2]] for side in (random_rows(3, 6, 1), random_rows(3, 6, 2)))
    pairs = Embeddings(image_BD=images, text_BD=texts, logit_scale=torch.tensor([9.0]).double())
    value, _ = DistillLoss([Teacher(width=6, logit_scale=9.0)])(pairs, image_BE=images, text_BE=texts)
    assert value.item() == pytest.approx(0, abs=1e-14)
