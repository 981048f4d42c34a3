"""The kernels on CUDA, compiled, with fresh random inputs, against float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clipx.losses import backend
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


def value_and_gradients(name: str, how: str, pairs: Embeddings, *ids_B: Tensor | None) -> tuple[Tensor, ...]:
    """The value, and gradients times the number of pairs, as a loss scale would: fp16 has no numbers for the mean's."""
    share = LOSSES[name](implementation=how)(pairs, **dict(zip(("ids_B", "positive_ids_B"), ids_B, strict=False)))
    inputs = (pairs.image_BD, pairs.text_BD, pairs.logit_scale, pairs.logit_bias)
    return share.detach(), *torch.autograd.grad(len(pairs.image_BD) * share, inputs)


def in_float64(name: str, pairs: Embeddings, *ids_B: Tensor | None) -> tuple[Tensor, ...]:
    wide = {key: value.detach().double().requires_grad_() for key, value in vars(pairs).items()}
    return value_and_gradients(name, "tiled", Embeddings(**wide), *ids_B)


def limits(pairs: Embeddings, wanted: tuple[Tensor, ...]) -> list[Tensor]:
    """How far each gradient may be off.

    g is rounded to the dtype once, and the result once more; scale and bias see many roundings, which cancel. Besides,
    a float32 logit near s is known to eps s, and exp turns that into as large an error of g, which in a row sum to
    1 or less: it is all that is left of the gradient where every pair is found with certainty.
    """
    size, scale = len(pairs.image_BD), pairs.logit_scale.item()
    of_a_row = 2 * torch.finfo(torch.float32).eps * scale
    of_inputs, of_scalars = of_a_row * scale * size**0.5, of_a_row * size
    relative = 2 * torch.finfo(pairs.image_BD.dtype).eps + 1e-4  # 765 products summed in float32, times s
    return [
        relative * exact.norm() + rounding
        for exact, rounding in zip(wanted, (of_inputs, of_inputs, of_scalars, of_scalars), strict=True)
    ]


# Few widths and numbers of pairs for each dtype, for each variant of a kernel takes seconds to compile.
CASES = [
    (torch.bfloat16, 1, 48, False),
    (torch.bfloat16, 77, 765, False),
    (torch.bfloat16, 5003, 765, False),
    (torch.bfloat16, 5003, 765, True),
    (torch.bfloat16, 1024, 640, False),
    (torch.bfloat16, 1024, 640, True),
    (torch.float16, 77, 765, False),
    (torch.float16, 77, 765, True),
    (torch.float32, 77, 765, False),
    (torch.float32, 1024, 640, False),
    (torch.float32, 1024, 640, True),
]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("how", ["triton", "tiled"])
@pytest.mark.parametrize(("dtype", "size", "width", "with_positives"), CASES)
@pytest.mark.parametrize("scale", [7.0, 30.0, 100.0])
def test_value_and_gradients(
    name: str, how: str, dtype: torch.dtype, size: int, width: int, with_positives: bool, scale: float
) -> None:
    seed = int(torch.randint(2**31, ()))
    torch.manual_seed(seed)
    pairs = draw(size, width, dtype, scale)
    ids_B, some_B = torch.randint(0, 4 * size, (2, size), device="cuda")
    ids = (ids_B, some_B if with_positives else None)
    found, wanted = value_and_gradients(name, how, pairs, *ids), in_float64(name, pairs, *ids)
    if how == "triton":
        assert backend._compile(pairs.image_BD.device, dtype, width, with_positives), "the kernels fell back"
    assert found[0].double().item() == pytest.approx(wanted[0].item(), rel=1e-4, abs=1e-4), seed
    for gradient, exact, limit in zip(found[1:], wanted[1:], limits(pairs, wanted[1:]), strict=True):
        assert (gradient.double() - exact).norm() <= limit, seed


@pytest.mark.parametrize("name", LOSSES)
def test_results_repeat_bit_for_bit(name: str) -> None:
    pairs = draw(3001, 765, torch.bfloat16, 30.0)
    ids_B = torch.randint(0, 6000, (3001,), device="cuda")
    first, second = (value_and_gradients(name, "triton", pairs, ids_B) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("how", ["triton", "tiled"])
def test_no_matrix_of_all_similarities_stands(name: str, how: str) -> None:
    pairs = draw(32768, 640, torch.bfloat16, 30.0)
    value_and_gradients(name, how, pairs, None)  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value_and_gradients(name, how, pairs, None)
    assert torch.cuda.max_memory_allocated() - before < 32768**2  # bytes; half a bfloat16 matrix


def test_a_compiled_caller_goes_on() -> None:
    pairs = draw(1024, 640, torch.bfloat16, 30.0)
    loss = InfoNCELoss()

    def step(image_BD: Tensor, text_BD: Tensor) -> Tensor:
        return loss(Embeddings(image_BD=2 * image_BD, text_BD=text_BD, logit_scale=pairs.logit_scale.detach()))

    compiled = torch.compile(step, fullgraph=True)(pairs.image_BD, pairs.text_BD)
    torch.testing.assert_close(compiled, step(pairs.image_BD, pairs.text_BD), rtol=1e-4, atol=1e-4)
