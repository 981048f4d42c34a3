"""The kernels on CUDA, compiled, with fresh random inputs, against float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clipx.losses import implementation
from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss
from clipx.types import Embeddings

pytestmark = pytest.mark.gpu
LOSSES: dict[str, type[InfoNCELoss] | type[SigmoidLoss]] = {"info_nce": InfoNCELoss, "sigmoid": SigmoidLoss}


def draw(size: int, width: int, dtype: torch.dtype, scale: float) -> Embeddings:
    """Texts like their images, more or less, so that the losses are neither those of chance nor 0."""
    image_BD = torch.randn(size, width, device="cuda")
    text_BD = image_BD + 2 * torch.randn(size, width, device="cuda")
    image_BD, text_BD = (functional.normalize(x, dim=1).to(dtype).requires_grad_() for x in (image_BD, text_BD))
    logit_scale, bias = (torch.full((1,), value, device="cuda", requires_grad=True) for value in (scale, -8.0))
    return Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=logit_scale, logit_bias=bias)


def value_and_gradients(name: str, how: str, pairs: Embeddings, ids_B: Tensor | None) -> tuple[Tensor, ...]:
    share = LOSSES[name](implementation=how)(pairs, ids_B=ids_B)
    inputs = (pairs.image_BD, pairs.text_BD, pairs.logit_scale, pairs.logit_bias)
    return share.detach(), *torch.autograd.grad(3 * share, inputs)


def in_float64(name: str, pairs: Embeddings, ids_B: Tensor | None) -> tuple[Tensor, ...]:
    wide = {key: value.detach().double().requires_grad_() for key, value in vars(pairs).items()}
    return value_and_gradients(name, "tiled", Embeddings(**wide), ids_B)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("how", ["triton", "tiled"])
@pytest.mark.parametrize("size", [1, 77, 1024, 5003])
@pytest.mark.parametrize("width", [48, 512, 640, 765])
def test_value_and_gradients(name: str, dtype: torch.dtype, how: str, size: int, width: int) -> None:
    seed = int(torch.randint(2**31, ()))
    torch.manual_seed(seed)
    pairs = draw(size, width, dtype, scale=float(torch.empty(()).uniform_(5, 100)))
    ids_B = torch.randint(0, 4 * size, (size,), device="cuda")
    found, wanted = value_and_gradients(name, how, pairs, ids_B), in_float64(name, pairs, ids_B)
    assert implementation._compile(pairs.image_BD.device, dtype, width), "the kernels fell back"
    assert found[0].double().item() == pytest.approx(wanted[0].item(), rel=2e-5, abs=2e-5), seed
    for gradient, exact in zip(found[1:], wanted[1:], strict=True):
        # g is rounded to the dtype once, and the result once more; scale and bias see many roundings, which cancel.
        limit = (2 * torch.finfo(dtype).eps + 2e-5) * exact.norm() + 1e-6
        assert (gradient.double() - exact).norm() <= limit, seed


@pytest.mark.parametrize("name", LOSSES)
def test_results_repeat_bit_for_bit(name: str) -> None:
    pairs = draw(3001, 512, torch.bfloat16, 30.0)
    first, second = (value_and_gradients(name, "triton", pairs, None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("how", ["triton", "tiled"])
def test_no_matrix_of_all_similarities_stands(name: str, how: str) -> None:
    pairs = draw(16384, 64, torch.bfloat16, 30.0)
    value_and_gradients(name, how, pairs, None)  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value_and_gradients(name, how, pairs, None)
    assert torch.cuda.max_memory_allocated() - before < 16384**2 / 2  # bytes; one bfloat16 matrix has 4 times as many


def test_a_compiled_caller_goes_on() -> None:
    pairs = draw(300, 64, torch.bfloat16, 30.0)
    loss = InfoNCELoss()

    def step(image_BD: Tensor, text_BD: Tensor) -> Tensor:
        return loss(Embeddings(image_BD=2 * image_BD, text_BD=text_BD, logit_scale=pairs.logit_scale.detach()))

    compiled = torch.compile(step, fullgraph=True)(pairs.image_BD, pairs.text_BD)
    torch.testing.assert_close(compiled, step(pairs.image_BD, pairs.text_BD), rtol=1e-4, atol=1e-4)
