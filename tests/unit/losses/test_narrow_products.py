"""What only CUDA does with bfloat16 and float16: products of them as they are, and g rounded to their dtype.

A CPU has no products of narrow matrices with a float32 result, so this file lends it torch's own operators for them.
"""

from collections.abc import Iterator

import pytest
import torch
from reference.info_nce import info_nce
from reference.sigmoid import sigmoid
from torch import Tensor
from torch.nn import functional

from clipx.losses import info_nce as info_nce_module
from clipx.losses import tiles
from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss
from clipx.types import Embeddings

LOSSES: dict[str, type[InfoNCELoss] | type[SigmoidLoss]] = {"info_nce": InfoNCELoss, "sigmoid": SigmoidLoss}


@pytest.fixture(autouse=True)
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def mm(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
        assert a.dtype == b.dtype
        assert a.dtype in tiles.NARROW
        return a.to(out_dtype) @ b.to(out_dtype)

    def addmm(total: Tensor, a: Tensor, b: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
        return out.copy_(total + mm(a, b, out_dtype))

    for module in (tiles, info_nce_module):
        monkeypatch.setattr(module, "matmul_operand", lambda x: x)
    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype", mm, "CPU")
    library.impl("addmm.dtype_out", addmm, "CPU")
    yield
    library._destroy()


def draw(size: int, dtype: torch.dtype, scale: float) -> Embeddings:
    """Texts like their images, more or less, so that the losses are neither those of chance nor 0."""
    image_BD, noise_BD = torch.randn(2, size, 32, generator=torch.Generator().manual_seed(size))
    image_BD, text_BD = (
        functional.normalize(x, dim=1).to(dtype).requires_grad_() for x in (image_BD, image_BD + 2 * noise_BD)
    )
    logit_scale, bias = (torch.full((1,), value, requires_grad=True) for value in (scale, -8.0))
    return Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=logit_scale, logit_bias=bias)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", tiles.NARROW)
@pytest.mark.parametrize("scale", [10.0, 50.0])
def test_value_and_gradients(name: str, dtype: torch.dtype, scale: float) -> None:
    size = 300
    loss_scale = 4 * 4096.0 if dtype == torch.float16 else 1.0  # without: too small for float16's numbers
    pairs = draw(size, dtype, scale)
    assert pairs.logit_bias is not None
    bias = [pairs.logit_bias] if name == "sigmoid" else []
    inputs = [pairs.image_BD, pairs.text_BD, pairs.logit_scale, *bias]
    ids_B = torch.randint(0, 4 * size, (size,), generator=torch.Generator().manual_seed(1))
    value = LOSSES[name](tile_size=64)(pairs, ids_B=ids_B)
    found = torch.autograd.grad(loss_scale * value, inputs)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    expected = (info_nce if name == "info_nce" else sigmoid)(*doubles, ids_G=ids_B)
    wanted = torch.autograd.grad(loss_scale * expected, doubles)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, exact in zip(found, wanted, strict=True):
        # g is rounded to the dtype once, and the result once more; scale and bias see many roundings, which cancel.
        assert (one.double() - exact).norm() <= torch.finfo(dtype).eps * exact.norm()
