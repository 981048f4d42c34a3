"""The polynomials, and the iteration beside the textbook's in float64."""

import math

import pytest
import torch
from reference.muon import newton_schulz, polar_express
from torch import Tensor

from clipx.optim.newton_schulz import newton_schulz_flops, orthogonalised, polynomials


def drawn(rows: int, columns: int, seed: int, *, decades: float = 0.0) -> Tensor:
    """A matrix of normal entries in float64, whose singular values are made to fall over some decades."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ torch.diag(s * torch.logspace(0, -decades, len(s), dtype=torch.float64)) @ v


@pytest.mark.parametrize("iterations", [2, 3, 4, 5, 6])
def test_polynomials_are_those_of_polar_express(iterations: int) -> None:
    """For the longest interval that ends up within 0.3 of 1."""
    shortest, longest = 0.1, 1e-6
    for _ in range(40):
        middle = math.sqrt(shortest * longest)
        if polar_express(middle, iterations)[1] > 0.3:
            longest = middle
        else:
            shortest = middle
    for found, expected in zip(polynomials(iterations), polar_express(shortest, iterations)[0], strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("iterations", "smallest"), [(2, 0.038), (3, 0.0091), (4, 0.0022), (5, 0.0005), (6, 0.00013)])
def test_singular_values_come_out_near_1(iterations: int, smallest: float) -> None:
    x = torch.logspace(-7, 0, 100_000, dtype=torch.float64)
    reached = x
    for a, b, c in polynomials(iterations):
        reached = a * reached + b * reached**3 + c * reached**5
    assert reached.min() >= 0
    assert reached.max() <= 1 + 1 / 3
    assert reached[x >= smallest].min() >= 1 - 1 / 3
    assert reached[x < smallest / 2].max() < 0.5


def test_five_of_jordans_reach_little_further_than_four() -> None:
    x = torch.linspace(0.0015, 1, 100_000, dtype=torch.float64)
    reached = x
    for _ in range(5):
        reached = 3.4445 * reached - 4.7750 * reached**3 + 2.0315 * reached**5
    assert reached.min() == pytest.approx(0.68, abs=0.01)
    assert reached[0] == pytest.approx(0.68, abs=0.01)


SHAPES = [(8, 8), (5, 9), (4, 8), (8, 4), (3, 16), (1, 7), (8, 8), (16, 3)]


@pytest.mark.parametrize(
    ("iterations", "dtype", "tolerance"),
    [
        *((iterations, torch.float32, 1e-5) for iterations in (2, 3, 4)),
        *((iterations, torch.float32, 1e-4) for iterations in (5, 6)),
        *((iterations, torch.float64, 1e-11) for iterations in (2, 4, 6)),
    ],
)
@pytest.mark.parametrize("decades", [0.0, 2.0])
def test_equals_the_textbook(iterations: int, dtype: torch.dtype, tolerance: float, decades: float) -> None:
    matrices = [drawn(*shape, seed, decades=decades).to(dtype) for seed, shape in enumerate(SHAPES)]
    matrices += [drawn(64, 256, 50, decades=decades).to(dtype), drawn(96, 96, 51, decades=decades).to(dtype)]
    before = [matrix.clone() for matrix in matrices]
    found = orthogonalised(matrices, dtype, iterations=iterations, compute_dtype=dtype)
    for matrix, kept, result in zip(matrices, before, found, strict=True):
        assert torch.equal(matrix, kept)
        expected = newton_schulz(matrix, polynomials(iterations))
        assert result.dtype == dtype
        assert (result.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_half_precision_stays_within_the_bounds(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape, 1, decades=1.0)
    for iterations in (4, 6):
        (found,) = orthogonalised([matrix], torch.float32, iterations=iterations, compute_dtype=torch.bfloat16)
        assert found.dtype == torch.float32
        assert torch.linalg.svdvals(found).max() < 1.4
        expected = newton_schulz(matrix, polynomials(iterations))
        assert (found - expected).norm() < 0.15 * expected.norm()


def test_zeros_stay_zeros_and_tiny_matrices_do_not() -> None:
    tiny = 1e-18 * drawn(4, 6, 0).float()
    zero, small = orthogonalised([torch.zeros(4, 6), tiny], torch.float32, iterations=4, compute_dtype=torch.float32)
    assert torch.equal(zero, torch.zeros(4, 6))
    assert (small - newton_schulz(tiny, polynomials(4))).norm() < 1e-5


@pytest.mark.parametrize("shape", [(4, 6), (64, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_elements_without_squares_stay_finite(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for exponent in range(-40, -17):
        (found,) = orthogonalised(
            [10.0**exponent * drawn(*shape, 0).float()], torch.float32, iterations=4, compute_dtype=dtype
        )
        assert found.isfinite().all()
        assert torch.linalg.svdvals(found).max() < 1.4


def test_many_equal_shapes_are_the_same_as_each_alone() -> None:
    matrices = [drawn(128, 128, seed).float() for seed in range(9)]  # more than one batch of a CPU
    together = orthogonalised(matrices, torch.float32, iterations=4, compute_dtype=torch.float32)
    for matrix, result in zip(matrices, together, strict=True):
        (alone,) = orthogonalised([matrix], torch.float32, iterations=4, compute_dtype=torch.float32)
        torch.testing.assert_close(result, alone, rtol=1e-5, atol=1e-6)


def test_flops_are_those_of_three_products() -> None:
    assert newton_schulz_flops(4, 16, iterations=1) == 2 * (4 * 4 * 16 + 4 * 4 * 4 + 4 * 4 * 16)
    assert newton_schulz_flops(16, 4, iterations=3) == 3 * newton_schulz_flops(4, 16, iterations=1)
