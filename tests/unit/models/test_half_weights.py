"""Layers with copies give what autocast gives, gradients are nearer to the truth, and no copy is ever old."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny_clip import tiny_model_config
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import weight_norm
from torch.nn.utils.prune import l1_unstructured

from clipx.distributed.block_transforms import checkpoint_blocks
from clipx.models.clip import CLIP, build_model
from clipx.models.half_weights import HalfLinear, HalfWeights

HALF = torch.bfloat16
SIZES = (24, 40)


class Layers(nn.Module):
    """With and without bias; the middle one can be checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24)) for _ in range(2))
        self.last = nn.Linear(*SIZES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        result: Tensor = self.last(x)
        return result


def autocast(device: str = "cpu") -> Any:
    return torch.autocast(device, dtype=HALF)


def passes(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The result, and the gradients of x and of all weights for a fixed gradient of the result."""
    x = x.detach().requires_grad_()
    model.zero_grad()
    with autocast(x.device.type):
        result = model(x)
    torch.manual_seed(1)
    result.backward(torch.randn(result.shape).to(result))
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert x.grad is not None
    return result.detach(), {"x": x.grad, **gradients}


def layer(*, bias: bool = True, device: str = "cpu") -> tuple[nn.Linear, HalfWeights]:
    torch.manual_seed(0)
    linear = nn.Linear(*SIZES, bias=bias).to(device)
    return linear, HalfWeights(nn.Sequential(linear), dtype=HALF)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (9, 24), (2, 5, 24), (0, 24)])
def test_results_and_input_gradients_are_autocasts_in_every_bit(shape: tuple[int, ...], bias: bool) -> None:
    linear, halves = layer(bias=bias)
    x = torch.randn(shape)
    expected, gradients = passes(linear, x)
    with halves.fresh():
        result, own = passes(linear, x)
        with torch.no_grad(), autocast():
            assert torch.equal(linear(x), expected)
    assert result.dtype == HALF
    assert own.keys() == gradients.keys()
    torch.testing.assert_close((result, own["x"]), (expected, gradients["x"]), rtol=0, atol=0)
    assert {name: gradient.dtype for name, gradient in own.items()} == dict.fromkeys(own, torch.float32)


def textbook(linear: nn.Linear, x: Tensor) -> dict[str, Tensor]:
    """The gradients of weight and bias in float64, for inputs and gradients in half precision."""
    torch.manual_seed(1)
    gradient_NO = torch.randn(len(x), linear.out_features).to(x.device, HALF).double()
    return {"weight": gradient_NO.T @ x.to(HALF).double(), "bias": gradient_NO.sum(0)}


def errors(gradients: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((gradients[name].double() - exact[name]).norm() / exact[name].norm()) for name in exact}


def assert_nearer(device: str) -> None:
    linear, halves = layer(device=device)
    x = torch.randn(200, 24, device=device)
    exact = textbook(linear, x)
    of_autocast = errors(passes(linear, x)[1], exact)
    with halves.fresh():
        own = errors(passes(linear, x)[1], exact)
    for name in exact:
        assert own[name] < 1e-6
        assert of_autocast[name] > 1e-4


def test_weight_gradients_are_those_of_float64_without_autocasts_rounding() -> None:
    assert_nearer("cpu")


def test_copies_are_never_old() -> None:
    model: Any = Layers()
    halves, x = HalfWeights(model, dtype=HALF), torch.randn(3, 24)

    def both() -> tuple[Tensor, Tensor]:
        with halves.fresh():
            own = passes(model, x)[0]
        return own, passes(model, x)[0]

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    seen = []
    for change in (
        lambda: None,
        optimizer.step,
        lambda: model.load_state_dict({name: weight + 1 for name, weight in model.state_dict().items()}),
        lambda: model.last.weight.data.mul_(3),
        lambda: setattr(model.last.weight, "data", model.last.weight.data - 2),
    ):
        change()
        own, expected = both()
        torch.testing.assert_close(own, expected, rtol=0, atol=0)
        assert all(not torch.equal(own, before) for before in seen)
        seen.append(own)


def test_outside_of_the_context_and_of_autocast_layers_are_plain() -> None:
    linear, halves = layer()
    x = torch.randn(5, 24)
    plain = functional.linear(x, linear.weight, linear.bias)
    with halves.fresh():
        assert torch.equal(linear(x), plain)
        with autocast(), torch.autocast("cpu", enabled=False):
            assert torch.equal(linear(x), plain)
    with pytest.raises(ZeroDivisionError), halves.fresh():
        _ = 1 / 0
    assert not halves.is_fresh


def test_locked_layers_get_no_gradient_and_pass_theirs_on() -> None:
    model = Layers()
    model.blocks[1].requires_grad_(False)
    halves, x = HalfWeights(model, dtype=HALF), torch.randn(3, 24)
    expected = passes(model, x)[1]
    with halves.fresh():
        own = passes(model, x)[1]
    assert own.keys() == expected.keys()
    assert not any(name.startswith("blocks.1") for name in own)
    torch.testing.assert_close(own, expected, rtol=0.02, atol=0.02)


def test_checkpointed_blocks_compute_the_same_again() -> None:
    plain, checkpointed = Layers(), Layers()
    checkpoint_blocks(list(checkpointed.blocks), fraction=1.0)
    x = torch.randn(3, 24)
    found = []
    for model in (plain, checkpointed):
        with HalfWeights(model, dtype=HALF).fresh():
            found.append(passes(model, x))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def small_clip() -> CLIP:
    return build_model(tiny_model_config(), vocab_size=30, seed=0)


def test_a_model_keeps_its_parameters_and_without_a_dtype_its_layers() -> None:
    model, other = small_clip(), small_clip()
    HalfWeights(model, dtype=HALF)
    HalfWeights(other, dtype=None)
    assert [type(module) for module in other.modules()] == [type(module) for module in small_clip().modules()]
    assert sum(isinstance(module, HalfLinear) for module in model.modules()) == 2 * 4 + 3 * 4 + 2
    assert model.state_dict().keys() == other.state_dict().keys()
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in other.named_buffers()]
    for weight, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.gpu
def test_on_cuda_results_are_autocasts_and_gradients_nearer() -> None:
    assert_nearer("cuda")
    model, x = Layers().cuda(), torch.randn(64, 24, device="cuda")
    halves = HalfWeights(model, dtype=HALF)
    expected, gradients = passes(model, x)
    with halves.fresh():
        result, own = passes(model, x)
    torch.testing.assert_close((result, own["x"]), (expected, gradients["x"]), rtol=0, atol=0)
    torch.testing.assert_close(own, gradients, rtol=0.02, atol=0.02)


@pytest.mark.gpu
def test_compiled_blocks_compute_with_copies() -> None:
    model, x = Layers().cuda(), torch.randn(64, 24, device="cuda")
    halves = HalfWeights(model, dtype=HALF)
    with halves.fresh():
        expected = passes(model, x)
    for block in model.blocks:
        block.compile()
    for change in (0.0, 1.0):  # new values of the weights reach compiled code, within and outside of the context
        with torch.no_grad():
            model.last.weight.add_(change)
            model.blocks[0][0].weight.add_(change)
        found = passes(model, x)
        with halves.fresh():
            own = passes(model, x)
        torch.testing.assert_close(own, found, rtol=0.02, atol=0.02)
        torch.testing.assert_close(own, expected, rtol=0.02, atol=0.02) if change == 0 else None


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("computed", [partial(l1_unstructured, name="weight", amount=0.5), weight_norm])
def test_weights_that_a_hook_computes_are_never_old(computed: Callable[[nn.Module], object]) -> None:
    linear = nn.Linear(*SIZES)
    computed(linear)
    halves = HalfWeights(nn.Sequential(linear), dtype=HALF)
    with torch.no_grad():
        for weight in linear.parameters():
            weight.mul_(3)
    x = torch.randn(5, 24)
    with autocast():
        expected = linear(x)
        with halves.fresh():
            assert torch.equal(linear(x), expected)
