"""Which code computes a tile: what a person may ask for, and what happens where it cannot be had."""

import logging
from typing import Any

import pytest
import torch
from torch.nn import functional

from clipx.errors import InputError
from clipx.losses import backend, triton_kernels, triton_ops
from clipx.losses.backend import check_implementation, use_kernels
from clipx.losses.exchange import Columns
from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss
from clipx.losses.tiles import Grid, Tile
from clipx.types import Embeddings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def pairs() -> Embeddings:
    x_BD = functional.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()
    scale, bias = torch.tensor([9.0]), torch.tensor([-3.0])
    return Embeddings(image_BD=x_BD, text_BD=x_BD, logit_scale=scale, logit_bias=bias)


@pytest.mark.parametrize("loss", [InfoNCELoss, SigmoidLoss])
def test_triton_on_a_cpu_is_an_error_in_one_line(loss: type[InfoNCELoss] | type[SigmoidLoss]) -> None:
    with pytest.raises(InputError, match=r"implementation=triton needs a CUDA device.* on cpu; choose auto or tiled$"):
        check_implementation("triton", CPU)
    with pytest.raises(InputError, match="implementation=triton"):
        loss(implementation="triton")(pairs())


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    backend._has_triton.cache_clear()
    try:
        with pytest.raises(InputError, match="on cuda without triton; choose"):
            check_implementation("triton", CUDA)
        assert not use_kernels("auto", torch.empty(2, 3, device="meta"), several_positives=False)
    finally:
        backend._has_triton.cache_clear()


def test_an_unknown_implementation_is_named() -> None:
    with pytest.raises(InputError, match="implementation=fused is unknown; choose one of auto, tiled, triton"):
        check_implementation("fused", CUDA)


@pytest.mark.parametrize("name", ["auto", "tiled"])
def test_elsewhere_the_tiles_are_torchs(name: str) -> None:
    check_implementation(name, CPU)
    assert not use_kernels(name, torch.empty(2, 3), several_positives=False)


def test_kernels_that_do_not_compile_cost_speed_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(width: int, dtype: torch.dtype, device: torch.device) -> None:
        raise RuntimeError("out of resource: shared memory\nsecond line")

    monkeypatch.setattr(triton_ops, "try_all", broken)
    backend._compile.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not any(backend._compile(CUDA, torch.bfloat16, 640) for _ in range(3))
    finally:
        backend._compile.cache_clear()
    assert [record.message for record in caplog.records] == [
        "loss: the Triton kernels for bfloat16 of width 640 fail on this device "
        "(RuntimeError: out of resource: shared memory); torch's tiles take over"
    ]


class Launches:
    """In place of a kernel: what Triton would compile for each launch."""

    def __init__(self, kernel: Any) -> None:
        self.parameters = kernel.params
        self.variants: set[tuple[Any, ...]] = set()

    def __getitem__(self, counts: tuple[int, int]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            named = zip(self.parameters, arguments, strict=False)
            classes = [
                (parameter.name, value == 1, value % 16 == 0)
                for parameter, value in named
                if isinstance(value, int) and not parameter.do_not_specialize
            ]
            self.variants.add((*classes, *constants.items()))

        return launch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_the_trial_compiles_is_what_whole_tiles_run(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One variant of each kernel, for compiling takes seconds; a trial of others would say nothing about these."""
    names = ("statistics_kernel", "info_nce_gradient_kernel", "sigmoid_kernel")
    launches = [Launches(getattr(triton_kernels, name)) for name in names]
    for name, launch in zip(names, launches, strict=True):
        monkeypatch.setattr(triton_kernels, name, launch)
    triton_ops.try_all(48, dtype, CPU)
    grid = Grid(rank=0, world_size=2, batch_size=1024, tile_size=512, ids_G=torch.zeros(2048, dtype=torch.int32))
    scale = torch.ones(1)
    for rows, places in ((slice(0, 512), slice(512, 768)), (slice(512, 1024), slice(0, 512))):
        tile = Tile(grid, rows, Columns(slice(0, 2), places))
        x_RD, y_ND = torch.ones(512, 48, dtype=dtype), torch.ones(len(tile.columns), 48, dtype=dtype)
        triton_ops.info_nce_statistics(x_RD, y_ND, scale, tile)
        triton_ops.info_nce_gradient(x_RD, y_ND, scale, tile, row_lse_R=x_RD[:, 0], column_lse_N=y_ND[:, 0])
        triton_ops.sigmoid_tile(x_RD, y_ND, scale, scale, tile)
    assert [len(launch.variants) for launch in launches] == [1, 1, 1]
    for num_rows in (1, 96, 97):  # what is left over at the end: one variant more, however many rows
        tile = Tile(grid, slice(0, num_rows), Columns(slice(0, 2), slice(0, 512)))
        x_RD, y_ND = torch.ones(num_rows, 48, dtype=dtype), torch.ones(1024, 48, dtype=dtype)
        triton_ops.info_nce_statistics(x_RD, y_ND, scale, tile)
        triton_ops.info_nce_gradient(x_RD, y_ND, scale, tile, row_lse_R=x_RD[:, 0], column_lse_N=y_ND[:, 0])
        triton_ops.sigmoid_tile(x_RD, y_ND, scale, scale, tile)
    assert [len(launch.variants) for launch in launches] == [2, 2, 2]


class TestCompiledCallers:
    """One node in a compiled caller's graph: no break, the same numbers."""

    @pytest.mark.parametrize("loss", [InfoNCELoss(), SigmoidLoss()])
    def test_a_compiled_caller_goes_on(self, loss: InfoNCELoss | SigmoidLoss) -> None:
        scale, bias = torch.tensor([9.0]), torch.tensor([-3.0])

        def step(image_BD: torch.Tensor, text_BD: torch.Tensor, ids_B: torch.Tensor) -> torch.Tensor:
            found = Embeddings(image_BD=2 * image_BD, text_BD=text_BD / 2, logit_scale=scale, logit_bias=bias)
            return 3 * loss(found, ids_B=ids_B)

        generator = torch.Generator().manual_seed(1)
        inputs = [torch.randn(5, 6, generator=generator, requires_grad=True) for _ in range(2)]
        ids_B = torch.tensor([0, 1, 0, 3, 4])
        torch.compiler.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs, ids_B)
        plain = step(*inputs, ids_B)
        torch.testing.assert_close(compiled, plain)
        torch.testing.assert_close(torch.autograd.grad(compiled, inputs), torch.autograd.grad(plain, inputs))

    def test_the_operators_keep_torchs_rules(self) -> None:
        """Schema, fake implementation and autograd registration, checked by torch itself."""
        x_BD, scale = torch.randn(5, 6, requires_grad=True), torch.ones(1, requires_grad=True)
        y_BD, bias = torch.randn(5, 6, requires_grad=True), torch.zeros(1, requires_grad=True)
        rest = (None, torch.arange(5), None, "", "auto", 4)
        torch.library.opcheck(torch.ops.clipx.info_nce.default, (x_BD, y_BD, scale, *rest))
        torch.library.opcheck(torch.ops.clipx.sigmoid.default, (x_BD, y_BD, scale, bias, *rest))
