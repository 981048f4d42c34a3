"""Which code computes a tile: what a person may ask for, and what happens where it cannot be had."""

import logging
from typing import Any

import pytest
import torch
from torch.nn import functional

from clipx.errors import InputError
from clipx.losses import backend, triton_combine, triton_kernels, triton_ops
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


def test_float32_is_left_to_torch_unless_kernels_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On what says that it is CUDA, without one."""

    class OnCuda(torch.Tensor):
        is_cuda, device = True, CUDA

    monkeypatch.setattr(backend, "_has_triton", lambda: True)
    monkeypatch.setattr(backend, "_compile", lambda *_: True)
    narrow, wide = (torch.empty(2, 3, dtype=dtype).as_subclass(OnCuda) for dtype in (torch.bfloat16, torch.float32))
    assert use_kernels("auto", narrow, several_positives=True)
    assert not use_kernels("auto", wide, several_positives=False)
    assert use_kernels("triton", wide, several_positives=False)
    assert not use_kernels("triton", wide.double(), several_positives=False)


@pytest.mark.parametrize("name", ["auto", "tiled"])
def test_elsewhere_the_tiles_are_torchs(name: str) -> None:
    check_implementation(name, CPU)
    assert not use_kernels(name, torch.empty(2, 3), several_positives=False)


def test_kernels_that_do_not_compile_cost_speed_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(width: int, dtype: torch.dtype, device: torch.device, *, several_positives: bool) -> None:
        raise RuntimeError("out of resource: shared memory\nsecond line")

    monkeypatch.setattr(triton_ops, "try_all", broken)
    backend._compile.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not any(backend._compile(CUDA, torch.bfloat16, 640, False) for _ in range(3))
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
                (parameter.name, value is None or value == 1, value is None or value % 16 == 0)
                for parameter, value in named
                if (isinstance(value, int) and not parameter.do_not_specialize) or value is None
            ]
            self.variants.add((*classes, *constants.items()))

        return launch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("several_positives", [False, True])
def test_what_the_trial_compiles_is_what_whole_tiles_run(
    dtype: torch.dtype, several_positives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One variant of each kernel, for compiling takes seconds; a trial of others would say nothing about these."""
    launches = []
    for module in (triton_kernels, triton_combine):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            launches.append(Launches(getattr(module, name)))
            monkeypatch.setattr(module, name, launches[-1])
    triton_ops.try_all(48, dtype, CPU, several_positives=several_positives)
    ids_G = torch.zeros(2048, dtype=torch.int32)
    positive_ids_G = ids_G if several_positives else None
    grid = Grid(
        rank=0, world_size=2, batch_size=1024, tile_size=512, ids_G=ids_G, positive_ids_G=positive_ids_G
    ).for_kernels(1, CPU)
    scale, weight_B = torch.ones(1), torch.ones(1024) if several_positives else None

    def run(rows: slice, places: slice) -> list[int]:
        tile = Tile(grid, rows, Columns(slice(0, 2), places))
        x_RD, y_ND = (torch.ones(size, 48, dtype=dtype) for size in (rows.stop - rows.start, len(tile.columns)))
        triton_ops.info_nce_statistics(x_RD, y_ND, scale, tile, weight_B=weight_B)
        lse = {"row_lse_R": x_RD[:, 0], "column_lse_N": y_ND[:, 0]}
        triton_ops.info_nce_gradient(x_RD, y_ND, scale, tile, **lse, weight_B=weight_B)
        triton_ops.sigmoid_tile(x_RD, y_ND, scale, scale, tile)
        return [len(launch.variants) for launch in launches]

    ranges = ((0, 512, 768), (512, 0, 512), (0, 0, 512))
    whole = [run(slice(row, row + 512), slice(first, end)) for row, first, end in ranges]
    assert all(counts == [1] * len(launches) for counts in whole)
    # what is left over at the end: one variant more of what is uneven, however many rows
    left_over = [run(slice(0, num_rows), slice(0, 512)) for num_rows in (1, 96, 97)]
    assert all(counts == [2, 2, 2, 1] for counts in left_over)


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
