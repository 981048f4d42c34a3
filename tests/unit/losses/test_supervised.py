"""Supervised losses against the textbook; absent cells reach neither a loss nor a gradient."""

from collections.abc import Callable

import pytest
import torch
from reference import supervised as textbook
from torch import Tensor

from clipx.losses.supervised import binary_sum, cross_entropy_sum, huber_sum, num_present

NAN = float("nan")
Loss = Callable[..., Tensor]

CLASSES = torch.tensor([0, NAN, 2, 1, NAN, 2], dtype=torch.float64)
LABELS = torch.tensor([[0, 1], [NAN, NAN], [1, 1], [1, NAN], [0.25, 0], [NAN, 1]], dtype=torch.float64)
NUMBERS = torch.tensor([0.1, NAN, -3, 5, NAN, 1.2], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 2, 1.5], dtype=torch.float64)

CASES = [
    pytest.param(cross_entropy_sum, textbook.cross_entropy_sum, (6, 3), (CLASSES,), id="class"),
    pytest.param(cross_entropy_sum, textbook.cross_entropy_sum, (6, 3), (CLASSES, WEIGHTS), id="weighted"),
    pytest.param(binary_sum, textbook.binary_sum, (6, 2), (LABELS,), id="labels"),
    pytest.param(huber_sum, textbook.huber_sum, (6,), (NUMBERS,), id="number"),
]
every_loss = pytest.mark.parametrize(("loss", "wanted", "shape", "targets"), CASES)


def predictions(shape: tuple[int, ...]) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def value_and_gradient(loss: Loss, x: Tensor, targets: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = loss(x, *targets)
    return value.detach(), *torch.autograd.grad(3 * value, x)


@every_loss
def test_value_and_gradient_are_the_textbooks(
    loss: Loss, wanted: Loss, shape: tuple[int, ...], targets: tuple[Tensor, ...]
) -> None:
    x = predictions(shape)
    exact = value_and_gradient(wanted, x, targets)
    found = value_and_gradient(loss, x, targets)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    narrow = value_and_gradient(loss, x.float(), tuple(target.float() for target in targets))
    torch.testing.assert_close(narrow, tuple(part.float() for part in exact), rtol=1e-5, atol=1e-5)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_predictions_lose_nothing_in_the_loss_under_autocast(
    loss: Loss, wanted: Loss, shape: tuple[int, ...], targets: tuple[Tensor, ...], dtype: torch.dtype
) -> None:
    x = predictions(shape).to(dtype)
    exact, exact_gradient = value_and_gradient(wanted, x.double(), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide = value_and_gradient(loss, x.double(), targets)
        value, gradient = value_and_gradient(loss, x, tuple(target.float() for target in targets))
    torch.testing.assert_close(wide, (exact, exact_gradient), rtol=1e-10, atol=1e-10)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=torch.finfo(dtype).eps, atol=1e-6)


@every_loss
def test_what_is_predicted_for_an_absent_cell_reaches_nothing(
    loss: Loss, wanted: Loss, shape: tuple[int, ...], targets: tuple[Tensor, ...]
) -> None:
    x = predictions(shape)
    value, gradient = value_and_gradient(loss, x, targets)
    absent = targets[0].isnan()
    assert (gradient[absent] == 0).all()
    for content in (1e30, torch.inf, torch.nan):
        other = x.clone()
        other[absent] = content
        assert all(map(torch.equal, value_and_gradient(loss, other, targets), (value, gradient)))


@every_loss
def test_nothing_present_is_a_zero_with_a_gradient(
    loss: Loss, wanted: Loss, shape: tuple[int, ...], targets: tuple[Tensor, ...]
) -> None:
    x, nothing = predictions(shape), torch.full_like(targets[0], NAN)
    value, gradient = value_and_gradient(loss, x, (nothing, *targets[1:]))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(x))
    assert num_present(nothing) == 0


@every_loss
def test_parts_of_a_batch_sum_to_the_whole(
    loss: Loss, wanted: Loss, shape: tuple[int, ...], targets: tuple[Tensor, ...]
) -> None:
    x = predictions(shape)
    parts = [loss(x[part], targets[0][part], *targets[1:]) for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    torch.testing.assert_close(sum(parts), loss(x, *targets), rtol=1e-14, atol=0)


@every_loss
def test_compiles_without_a_break_and_needs_no_value_on_the_host(
    loss: Loss, wanted: Loss, shape: tuple[int, ...], targets: tuple[Tensor, ...]
) -> None:
    x = predictions(shape)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, *targets), loss(x, *targets))
    assert loss(x.to("meta"), *(target.to("meta") for target in targets)).shape == ()


def test_large_logits_have_finite_losses() -> None:
    far = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert cross_entropy_sum(far, torch.tensor([1.0, 1.0])) == 2e4
    assert binary_sum(far, torch.tensor([[0.0, 1.0], [0.0, 1.0]])) == 2e4


def test_counts_cells() -> None:
    assert num_present(CLASSES) == 4
    assert num_present(LABELS) == 8
