"""Which kernel of torch is asked for, with tensors that say they are on CUDA and hold nothing."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import _cur_sdpa_kernel_backends

from clipx.models.attention import backends
from clipx.models.attention.backends import Choice, attend, cudnn_is_sound, kernel_for, only


def qkv_on_cuda(num_tokens: int = 50, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(2, num_tokens, 3, 2, 64, dtype=dtype, device="cuda")


def allowed() -> dict[str, bool]:
    cuda = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
    }


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        ("flash", ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]),
        ("efficient", ["EFFICIENT_ATTENTION", "FLASH_ATTENTION", "MATH"]),
        ("cudnn", ["CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]),
    ],
)
def test_torch_takes_the_kernel_and_has_another_for_what_it_refuses(kernel: backends.Kernel, wanted: list[str]) -> None:
    before = allowed()
    with only(kernel, qkv_on_cuda()):
        assert [backend.name for backend in _cur_sdpa_kernel_backends(with_priority=True)] == wanted
    with only(kernel, torch.empty(1)):
        assert allowed() == before
    assert allowed() == before


def test_attention_asks_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, bool]] = []
    plain = functional.scaled_dot_product_attention

    def watched(*args: torch.Tensor, **kwargs: float) -> torch.Tensor:
        seen.append(allowed())
        return plain(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    q, k, v = qkv_on_cuda().unbind(2)
    assert attend(q[:, :1], k, v).shape == (2, 1, 2, 64)
    assert [where["cudnn"] for where in seen] == [False]


def test_a_choice_holds_for_its_own_shape_and_dtype() -> None:
    choice = Choice(50, torch.bfloat16, "one_tile")
    assert kernel_for(qkv_on_cuda(), choice) == "one_tile"
    assert kernel_for(qkv_on_cuda(), None) == "flash"
    assert kernel_for(qkv_on_cuda(49), choice) == "flash"
    assert kernel_for(qkv_on_cuda(dtype=torch.float32), choice) == "flash"
    assert kernel_for(torch.empty(2, 50, 3, 2, 64, dtype=torch.bfloat16), choice) == "flash"


@pytest.mark.parametrize(
    ("version", "num_tokens", "sound"),
    [
        (91_900, 50, True),
        (91_900, 64, False),
        (91_900, 192, False),
        (91_900, 128, True),
        (92_600, 64, True),
        (92_600, 1, False),
        (None, 50, False),
    ],
)
def test_cudnn_is_left_out_where_its_gradients_are_known_to_be_wrong(
    version: int | None, num_tokens: int, sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    assert cudnn_is_sound(num_tokens) == sound


@pytest.mark.gpu
@pytest.mark.parametrize(("queries", "keys"), [(1, 128), (1, 50), (64, 64), (192, 192)])
def test_gradients_are_finite_where_cudnn_gives_nan(queries: int, keys: int) -> None:
    """Logits near -120, for one query and for 64 keys more than a multiple of 128."""
    qkv = 0.1 * torch.randn(4, keys, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    qkv[:, :, 0, :, 0], qkv[:, :, 1, :, 0] = 1.0, -960.0
    q, k, v = qkv.requires_grad_().unbind(2)
    mixed = attend(q[:, :queries], k, v)
    (gradient,) = torch.autograd.grad(mixed, qkv, torch.randn_like(mixed))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv, gradient = torch.randn(4, 3, 9, 3, 2, 16, generator=generator).to(dtype).flatten(0, 1).split((6, 6))
    qkv = qkv.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        mixed = attend(*qkv.unbind(2))
    (found,) = torch.autograd.grad(mixed, qkv, gradient.select(2, 0))
    exact = qkv.detach().float().requires_grad_()
    q, k, v = (x.transpose(1, 2) for x in exact.unbind(2))
    wanted = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    (wanted_gradient,) = torch.autograd.grad(wanted, exact, gradient.select(2, 0).float())
    assert torch.equal(mixed, wanted.to(dtype))
    assert torch.equal(found, wanted_gradient.to(dtype))
