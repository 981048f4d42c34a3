"""The Triton kernels under Triton's interpreter, on the CPU, against float64.

The interpreter must be chosen before triton is imported, so one test runs this file again in a process of its own.
"""

import os
import subprocess
import sys

import pytest
import torch
from reference.info_nce import info_nce
from reference.sigmoid import sigmoid
from torch import Tensor
from torch.nn import functional

from clipx.losses.exchange import Columns
from clipx.losses.info_nce import InfoNCELoss, _positive_weight, _tile_gradient, _tile_statistics
from clipx.losses.sigmoid import SigmoidLoss, _sigmoid_tile
from clipx.losses.tiles import Grid, Tile
from clipx.types import Embeddings

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
full = pytest.mark.full
interpreted = pytest.mark.skipif(not INTERPRETING, reason="runs in the process that the first test starts")
LOSSES: dict[str, type[InfoNCELoss] | type[SigmoidLoss]] = {"info_nce": InfoNCELoss, "sigmoid": SigmoidLoss}
CLOSE = {"rtol": 2e-5, "atol": 1e-6}


@pytest.mark.skipif(INTERPRETING, reason="is that process")
@pytest.mark.parametrize("rows", ["not full", pytest.param("full", marks=full)])
def test_this_file_under_the_interpreter(rows: str) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-m", rows, __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def draw(size: int, width: int, *, scale: float = 12.0, seed: int = 0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    image_BD, text_BD = (
        functional.normalize(torch.randn(size, width, generator=generator), dim=1).requires_grad_() for _ in range(2)
    )
    logit_scale, bias = (torch.full((1,), value, requires_grad=True) for value in (scale, -3.0))
    return Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=logit_scale, logit_bias=bias)


def leaves(pairs: Embeddings, name: str) -> list[Tensor]:
    assert pairs.logit_bias is not None
    bias = [pairs.logit_bias] if name == "sigmoid" else []
    return [pairs.image_BD, pairs.text_BD, pairs.logit_scale, *bias]


def textbook(name: str, pairs: Embeddings, *ids_G: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    inputs = leaves(pairs, name)
    found_ids = dict(zip(("ids_G", "positive_ids_G"), ids_G, strict=True))
    value = (info_nce if name == "info_nce" else sigmoid)(*inputs, **found_ids)
    return value.float(), torch.autograd.grad(3 * value, inputs)


@interpreted
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("size", "width", "tile_size", "scale"),
    [
        (65, 70, 40, 12.0),
        *[pytest.param(*sizes, 12.0, marks=full) for sizes in ((1, 1, 4), (7, 48, 2), (70, 640, 20), (128, 32, 32))],
        pytest.param(70, 5, 40, 1e4, marks=full),
    ],
)
@pytest.mark.parametrize("with_positives", [False, True])
@pytest.mark.parametrize("with_ids", [(), *(pytest.param(shape, marks=full) for shape in ((1,), (2,))), (2, 3)])
def test_value_and_gradients_are_the_textbooks(
    name: str, size: int, width: int, tile_size: int, scale: float, with_ids: tuple[int, ...], with_positives: bool
) -> None:
    pairs = draw(size, width, scale=scale)
    generator = torch.Generator().manual_seed(1)
    ids_B = torch.randint(0, size, (size, *with_ids), generator=generator) if with_ids else None
    if with_ids == (1,):
        ids_B = ids_B[:, 0]
    if with_ids == (2, 3):
        ids_B[:, 1, 1] = ids_B[:, 0, 1]  # a pair's own
    positive_ids_B = torch.randint(0, size, (size,), generator=generator) if with_positives else None
    loss = LOSSES[name](implementation="triton", tile_size=tile_size)
    value = loss(pairs, ids_B=ids_B, positive_ids_B=positive_ids_B)
    expected, wanted = textbook(name, pairs, ids_B, positive_ids_B)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5 if scale > 100 else 1e-6)
    for found, exact in zip(torch.autograd.grad(3 * value, leaves(pairs, name)), wanted, strict=True):
        limit = 1e-3 if scale > 100 else 1e-6  # a logit of 1e4 has 1e-3 between neighbouring float32 numbers
        assert (found - exact).norm() <= limit * exact.norm() + 1e-8


@interpreted
@pytest.mark.parametrize("name", LOSSES)
def test_logits_far_below_the_largest_of_their_tile_count(name: str) -> None:
    """An image 200 below its neighbours in the same block: exp(-200) is no float32 number."""
    pairs = draw(40, 8, scale=100.0)
    image_BD, text_BD = pairs.image_BD.detach().clone(), pairs.text_BD.detach()
    text_BD = functional.normalize(text_BD[:1] + 1e-2 * text_BD, dim=1)
    image_BD[:20], image_BD[20:] = text_BD[:20], -text_BD[20:]
    pairs = Embeddings(**vars(pairs) | {"image_BD": image_BD.requires_grad_(), "text_BD": text_BD.requires_grad_()})
    value = LOSSES[name](implementation="triton")(pairs)
    expected, wanted = textbook(name, pairs, None, None)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    for found, exact in zip(torch.autograd.grad(3 * value, leaves(pairs, name)), wanted, strict=True):
        assert (found - exact).norm() <= 1e-4 * exact.norm()


@interpreted
@pytest.mark.parametrize("with_positives", [pytest.param(False, marks=full), True])
def test_more_programs_than_are_combined_at_once(with_positives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipx.losses import triton_ops

    monkeypatch.setitem(triton_ops.COMBINE_BLOCKS, "BLOCK_K", 2)
    pairs = draw(300, 8, scale=40.0)  # 5 programs along each axis
    positive_ids_B = torch.arange(300) % 7 if with_positives else None
    value = InfoNCELoss(implementation="triton")(pairs, positive_ids_B=positive_ids_B)
    expected, _ = textbook("info_nce", pairs, None, positive_ids_B)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def tile_of(num_rows: int, num_columns: int) -> Tile:
    """This rank's rows, and texts of which the first `num_rows` are theirs."""
    grid = Grid(rank=0, world_size=1, batch_size=num_rows, tile_size=num_rows).for_kernels(1, torch.device("cpu"))
    return Tile(grid, slice(0, num_rows), Columns(slice(0, 1), slice(0, num_columns)))


@interpreted
def test_narrow_operands_give_float32_statistics_and_a_gradient_rounded_once() -> None:
    """In float16, since the interpreter multiplies bfloat16 wrongly; bfloat16 is for test_kernels_cuda.py."""
    from clipx.losses import triton_ops

    dtype, grad_scale = torch.float16, 4096
    pairs = draw(130, 48, scale=50.0)
    x_RD, y_ND = pairs.image_BD.detach().to(dtype), pairs.text_BD.detach().to(dtype)
    scale, tile = torch.tensor([50.0]), tile_of(130, 130)
    logits = 50.0 * x_RD.double() @ y_ND.double().T
    row_lse_R, column_lse_N, pair_R = triton_ops.info_nce_statistics(x_RD, y_ND, scale, tile, weight_B=None)
    for found, exact in (
        (row_lse_R, logits.logsumexp(1)),
        (column_lse_N, logits.logsumexp(0)),
        (pair_R, logits.diag()),
    ):
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=2e-5)

    lse = {"row_lse_R": row_lse_R, "column_lse_N": column_lse_N}
    gradient_RN = triton_ops.info_nce_gradient(x_RD, y_ND, scale, tile, **lse, weight_B=None)
    exact = (logits.softmax(1) + logits.softmax(0)) / 2 - torch.eye(130)
    assert gradient_RN.dtype == dtype
    torch.testing.assert_close(gradient_RN.double() / grad_scale, exact, rtol=torch.finfo(dtype).eps, atol=1e-8)

    loss, gradient_sum, gradient_RN = triton_ops.sigmoid_tile(x_RD, y_ND, scale, torch.tensor([-10.0]), tile)
    signs = 1 - 2 * torch.eye(130, dtype=torch.float64)
    opposed = (logits - 10) * signs
    exact = opposed.sigmoid() * signs
    torch.testing.assert_close(loss.double(), functional.softplus(opposed, threshold=1e9).sum(), **CLOSE)
    torch.testing.assert_close(gradient_sum.double(), exact.sum(), **CLOSE)
    torch.testing.assert_close(gradient_RN.double() / grad_scale, exact, rtol=torch.finfo(dtype).eps, atol=1e-8)


@interpreted
def test_small_losses_keep_their_digits() -> None:
    """exp(-25) would vanish in the float32 number 1 + exp(-25)."""
    from clipx.losses import triton_ops

    x_RD, y_ND = torch.eye(4)[:2], torch.eye(4)[2:]
    grid = Grid(rank=0, world_size=2, batch_size=2, tile_size=2).for_kernels(1, x_RD.device)
    tile = Tile(grid, slice(0, 2), Columns(slice(1, 2), slice(0, 2)))
    loss, gradient_sum, _ = triton_ops.sigmoid_tile(x_RD, y_ND, torch.ones(1), torch.tensor([-25.0]), tile)
    exact = 4 * torch.tensor(-25.0, dtype=torch.float64).exp()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient_sum.double(), exact, rtol=1e-5, atol=0)


@interpreted
def test_log1p_in_the_kernel_is_accurate_everywhere() -> None:
    """One logit per tile, over the whole range; of a negative, and of a pair."""
    from clipx.losses import triton_ops

    grid = Grid(rank=0, world_size=2, batch_size=1, tile_size=1).for_kernels(1, torch.device("cpu"))
    for logit in (-80.0, -15.0, -3.0, -0.7, -1e-3, 0.0, 1e-3, 0.7, 3.0, 15.0, 80.0):
        for owner, sign in ((1, 1), (0, -1)):
            tile = Tile(grid, slice(0, 1), Columns(slice(owner, owner + 1), slice(0, 1)))
            one, opposed = torch.ones(1, 1), torch.tensor(sign * logit, dtype=torch.float64)
            loss, gradient_sum, gradient_RN = triton_ops.sigmoid_tile(
                one, one, torch.tensor([logit]), torch.zeros(1), tile
            )
            torch.testing.assert_close(loss.double(), functional.softplus(opposed, threshold=1e9), rtol=3e-6, atol=0)
            torch.testing.assert_close(gradient_sum.double(), sign * opposed.sigmoid(), rtol=1e-5, atol=0)
            torch.testing.assert_close(gradient_RN.sum(), gradient_sum, rtol=0, atol=0)


@interpreted
@pytest.mark.parametrize("owners", [slice(0, 3), slice(1, 2), pytest.param(slice(2, 3), marks=full)])
@pytest.mark.parametrize("with_positives", [pytest.param(False, marks=full), True])
@pytest.mark.parametrize("with_ids", [False, pytest.param(True, marks=full), (2, 2)])
def test_every_tile_of_a_rank_in_the_middle_is_torchs(
    owners: slice, with_ids: bool | tuple[int, int], with_positives: bool
) -> None:
    """Gathered slices hold all owners' texts, a ring's one owner's: pairs lie elsewhere in each of them."""
    from clipx.losses import triton_ops

    pairs, generator = draw(21, 10), torch.Generator().manual_seed(1)
    ids_G, positive_ids_G = (
        torch.randint(0, 9, (21,), generator=generator) if given else None for given in (with_ids, with_positives)
    )
    if isinstance(with_ids, tuple):
        ids_G = torch.randint(0, 9, (21, *with_ids), generator=generator, dtype=torch.int32)
        ids_G[:, 1, 1] = ids_G[:, 0, 1]
    plain = Grid(rank=1, world_size=3, batch_size=7, tile_size=4, ids_G=ids_G, positive_ids_G=positive_ids_G)
    grid, weight_B = plain.for_kernels(1, torch.device("cpu")), _positive_weight(plain, torch.float32)
    scale, bias = pairs.logit_scale.detach(), torch.tensor([-3.0])
    lse_G = torch.full((21,), 20.0)
    for rows in grid.row_slices(4):
        for places in (slice(0, 3), slice(3, 7)):
            tile, torchs = (Tile(each, rows, Columns(owners, places)) for each in (grid, plain))
            arguments = (pairs.image_BD.detach()[7:14][rows], grid.take(pairs.text_BD.detach(), tile.columns), scale)
            torch.testing.assert_close(
                triton_ops.info_nce_statistics(*arguments, tile, weight_B=weight_B),
                _tile_statistics(*arguments, torchs, weight_B=weight_B),
                **CLOSE,
            )
            lse = {"row_lse_R": grid.local(lse_G)[rows] / 2, "column_lse_N": grid.take(lse_G, tile.columns)}
            torch.testing.assert_close(
                triton_ops.info_nce_gradient(*arguments, tile, **lse, weight_B=weight_B),
                _tile_gradient(*arguments, torchs, **lse, weight_B=weight_B),
                **CLOSE,
            )
            torch.testing.assert_close(
                triton_ops.sigmoid_tile(*arguments, bias, tile), _sigmoid_tile(*arguments, bias, torchs), **CLOSE
            )
