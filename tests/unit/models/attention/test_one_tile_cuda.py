"""Attention in one tile on CUDA, compiled, with fresh random inputs, against float64."""

import pytest
import torch
from reference.attention import packed_attention

from clipx.models.attention.one_tile import one_tile_attention

pytestmark = pytest.mark.gpu
DTYPES = [torch.bfloat16, torch.float16]


def compare(lengths: list[int], *, channels: int, dtype: torch.dtype, longest: int | None, causal: bool) -> None:
    """Value and gradients, each to a few roundings of its largest entry."""
    qkv = torch.randn(sum(lengths), 3, 4, channels, device="cuda", dtype=dtype).requires_grad_()
    bounds = None if longest is None else torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    mixed = one_tile_attention(qkv, bounds, longest=longest or lengths[0], causal=causal)
    weights = torch.randn_like(mixed)
    wide = qkv.detach().double().requires_grad_()
    expected = packed_attention(wide, lengths, causal=causal, scale=channels**-0.5)
    (ours,) = torch.autograd.grad(mixed, qkv, weights)
    (theirs,) = torch.autograd.grad(expected, wide, weights.double())
    for found, wanted in [(mixed, expected), *zip(ours.unbind(1), theirs.unbind(1), strict=True)]:
        largest = wanted.abs().max()
        torch.testing.assert_close(found.double() / largest, wanted / largest, rtol=0, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "channels"), [(50, 64), (17, 64), (64, 64), (65, 64), (128, 64), (50, 32), (50, 80)]
)
def test_images(num_tokens: int, channels: int, dtype: torch.dtype) -> None:
    compare([num_tokens] * 200, channels=channels, dtype=dtype, longest=None, causal=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [True, False])
def test_texts(dtype: torch.dtype, causal: bool) -> None:
    compare([*range(1, 78), 0, 32, 64, 77], channels=64, dtype=dtype, longest=77, causal=causal)
