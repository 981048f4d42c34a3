import math
from typing import Any

import pytest
import torch
from reference.stable_adamw import stable_adamw
from torch import Tensor, nn

from clipx.optim.stable_adamw import StableAdamW

SETTINGS: dict[str, Any] = {"lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-4, "weight_decay": 0.1}


def gradients(shape: tuple[int, ...], seed: int) -> list[Tensor]:
    """Of seven steps, with a jump that must be clipped and one entry that never moves."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (1.0, 1.0, 0.1, 1.0, 40.0, 1.0, 0.0)
    drawn = [size * torch.randn(shape, generator=generator, dtype=torch.float64) for size in sizes]
    for gradient in drawn:
        gradient.view(-1)[0] = 0
    return drawn


def test_equals_the_textbook() -> None:
    shapes = [(5, 3), (7,), (1,), (2, 3, 2)]
    params = [nn.Parameter(torch.linspace(-1, 2, math.prod(shape)).double().view(shape)) for shape in shapes]
    wanted = [
        stable_adamw(parameter.detach(), gradients(shape, seed), **SETTINGS)
        for seed, (parameter, shape) in enumerate(zip(params, shapes, strict=True))
    ]
    optimizer = StableAdamW(params, **SETTINGS)
    for step in range(7):
        for seed, (parameter, shape) in enumerate(zip(params, shapes, strict=True)):
            parameter.grad = gradients(shape, seed)[step]
        optimizer.step()
    for parameter, expected in zip(params, wanted, strict=True):
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-14)


def test_a_jump_of_the_gradient_is_clipped_in_its_tensor_alone() -> None:
    jumping, calm = (nn.Parameter(torch.zeros(4, 4)) for _ in range(2))
    optimizer = StableAdamW([jumping, calm], lr=1.0, betas=(0.0, 0.99), eps=1e-6)
    for size in (1.0, 100.0):
        before = jumping.detach().clone(), calm.detach().clone()
        jumping.grad, calm.grad = torch.full((4, 4), size), torch.ones(4, 4)
        optimizer.step()
    moved = [(a - b.detach()).abs().max().item() for a, b in zip(before, (jumping, calm), strict=True)]
    assert moved[1] == pytest.approx(1.0, rel=1e-4)
    # AdamW would move it by 100 / sqrt(u) = 1.41; divided by the same ratio it is 1
    assert moved[0] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_bad_step_leaves_everything_as_it_was_and_the_next_goes_on(dtype: torch.dtype, bad_step: int) -> None:
    steps = [gradient.to(dtype) for gradient in gradients((4, 3), 0)[:5]]
    disturbed, calm = (nn.Parameter(torch.ones(4, 3, dtype=dtype)) for _ in range(2))
    one, other = StableAdamW([disturbed], **SETTINGS), StableAdamW([calm], **SETTINGS)
    for number, gradient in enumerate(steps):
        if number == bad_step:
            before = disturbed.detach().clone(), {k: v.clone() for k, v in one.state.get(disturbed, {}).items()}
            disturbed.grad = torch.tensor([torch.nan, torch.inf, 1.0], dtype=dtype).expand(4, 3).clone()
            one.found_inf = torch.tensor(1.0)
            one.step()
            assert torch.equal(before[0], disturbed)
            assert all(torch.equal(value, one.state[disturbed][name]) for name, value in before[1].items())
            assert int(one.state[disturbed]["step"]) == bad_step
        one.found_inf, one.grad_scale = torch.tensor(0.0), None
        disturbed.grad, calm.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
        assert torch.equal(disturbed, calm)


def test_gradients_are_divided_by_the_scale() -> None:
    scaled, plain = (nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    one, other = StableAdamW([scaled], **SETTINGS), StableAdamW([plain], **SETTINGS)
    one.grad_scale = torch.tensor(1024.0)
    plain.grad = gradients((4, 3), 1)[0].float()
    scaled.grad = 1024 * plain.grad
    one.step()
    other.step()
    assert torch.equal(scaled, plain)


def test_tensors_without_gradient_are_passed_over_and_have_no_state() -> None:
    moving, still = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = StableAdamW([moving, still], **SETTINGS)
    moving.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 3))
    assert set(optimizer.state) == {moving}
    assert not torch.equal(moving, still)
