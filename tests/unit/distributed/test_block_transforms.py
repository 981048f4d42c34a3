import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from clipx.distributed.block_transforms import (
    checkpoint_blocks,
    compile_blocks,
    compiles,
    evenly_spread,
    float8_blocks,
)
from clipx.errors import InputError
from clipx.train.micro_batch import LiveBytes


class Block(nn.Module):
    """Keeps much inside of itself, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(8, 256)
        self.dropout = nn.Dropout(0.5)
        self.narrow = nn.Linear(256, 8)

    def forward(self, x_BC: Tensor) -> Tensor:
        return x_BC + self.narrow(self.dropout(torch.tanh(self.wide(x_BC))))


def tower(num_blocks: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(num_blocks)))


def gradients(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    model.zero_grad()
    loss = model(torch.linspace(-1, 1, 64 * 8).view(64, 8)).square().mean()
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(one: nn.Module, two: nn.Module) -> None:
    (loss_one, grads_one), (loss_two, grads_two) = gradients(one), gradients(two)
    torch.testing.assert_close(loss_one, loss_two)
    assert grads_one.keys() == grads_two.keys()
    for name, gradient in grads_one.items():
        torch.testing.assert_close(gradient, grads_two[name], msg=name)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_checkpointing_changes_no_gradient_and_no_name(fraction: float) -> None:
    model = tower()
    checkpoint_blocks(list(model), fraction=fraction)
    assert_same(model, tower())


def test_checkpointing_takes_less_memory_the_more_blocks_it_has() -> None:
    peaks = []
    for fraction in (0.0, 0.5, 1.0):
        model = tower(8)
        checkpoint_blocks(list(model), fraction=fraction)
        gradients(model)
        with LiveBytes() as live:
            gradients(model)
        peaks.append(live.peak)
    assert peaks[1] < 0.8 * peaks[0]
    assert peaks[2] < 0.6 * peaks[1]


@pytest.mark.parametrize(
    ("fraction", "places"), [(0, []), (0.25, [0, 4]), (0.5, [0, 2, 4, 6]), (0.75, [0, 1, 2, 4, 5, 6]), (1, [*range(8)])]
)
def test_checkpointed_blocks_are_evenly_spread(fraction: float, places: list[int]) -> None:
    blocks = [nn.Identity() for _ in range(8)]
    assert [blocks.index(block) for block in evenly_spread(blocks, fraction)] == places


@pytest.mark.parametrize("number", range(1, 25))
def test_gaps_differ_by_one_at_most(number: int) -> None:
    blocks = [nn.Identity() for _ in range(24)]
    places = [blocks.index(block) for block in evenly_spread(blocks, number / 24)]
    assert len(places) == number
    gaps = {after - before for before, after in pairwise([*places, 24])}
    assert max(gaps) - min(gaps) <= 1


def counting() -> tuple[list[int], Callable[..., Any]]:
    """A compiler that leaves the graph as it is, and its calls."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(len(inputs))
        return graph.forward

    return graphs, backend


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_compiled_blocks_compute_the_same(fraction: float, caplog: pytest.LogCaptureFixture) -> None:
    torch.compiler.reset()
    model = tower()
    names = [name for name, _ in model.named_parameters()]
    checkpoint_blocks(list(model), fraction=fraction)
    backend = CompileCounterWithBackend("aot_eager")
    with caplog.at_level(logging.INFO):
        assert compile_blocks(list(model), dry_run=lambda: gradients(model), group=None, backend=backend) is None
    assert "compiled 4 blocks in" in caplog.text
    assert backend.frame_count >= 1
    assert [name for name, _ in model.named_parameters()] == names
    assert_same(model, tower())


def test_phases_and_evaluations_stay_compiled() -> None:
    torch.compiler.reset()
    model = tower()
    graphs, backend = counting()
    assert compile_blocks(list(model), dry_run=lambda: gradients(model), group=None, backend=backend) is None
    for number in range(12):  # as if every one were a phase: a guard of its own
        for block in model:
            block.dropout.p = number / 100
        before = len(graphs)
        gradients(model)
        assert len(graphs) > before, number


@pytest.mark.parametrize(("without_gradients", "more"), [(True, 0), (False, 1)])
def test_a_step_compiles_nothing_that_was_tried(without_gradients: bool, more: int) -> None:
    torch.compiler.reset()
    model, backend = tower(), CompileCounterWithBackend("aot_eager")
    compile_blocks(
        list(model),
        dry_run=lambda: gradients(model),
        group=None,
        without_gradients=without_gradients,
        backend=backend,
    )
    before = backend.frame_count
    gradients(model)
    assert backend.frame_count == before
    with torch.no_grad():
        model(torch.linspace(-1, 1, 64 * 8).view(64, 8))
    assert backend.frame_count == before + more


def refuse(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    raise RuntimeError("no C++ compiler\nand a long story")


def refuse_backward(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """A graph whose forward pass runs, and whose backward pass does not."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler\nand a long story")

    return lambda *args: [Fails.apply(x) for x in graph.forward(*args)]


@pytest.mark.parametrize("backend", [refuse, refuse_backward])
def test_what_cannot_be_compiled_stays_as_it_was(backend: Callable[..., Any]) -> None:
    torch.compiler.reset()
    model, ran = tower(), list[object]()
    problem = compile_blocks(list(model), dry_run=lambda: ran.append(gradients(model)), group=None, backend=backend)
    assert problem is not None
    assert "no C++ compiler" in problem
    assert "\n" not in problem
    assert ran  # through all blocks and back: a rank that fails keeps up with the others
    assert_same(model, tower())


@pytest.mark.parametrize("place", ["block", "beside"])
def test_an_error_of_the_model_is_no_failure_to_compile(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    model = tower()

    def forward(x_BC: Tensor) -> Tensor:
        raise ValueError("a misspelt column")

    if place == "block":
        monkeypatch.setattr(model[2], "forward", forward)
    with pytest.raises(ValueError, match="a misspelt column"):
        compile_blocks(
            list(model),
            dry_run=lambda: forward(model(torch.ones(2, 8))),
            group=None,
            backend=counting()[1],
        )


def test_a_later_shape_that_cannot_be_compiled_ends_neither_the_run_nor_the_compiled_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.compiler.reset()
    model, broken, calls = tower(), list[bool](), list[int]()

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        if broken:
            raise RuntimeError("no memory for the compiler")

        def run(*args: Tensor) -> object:
            calls.append(1)
            return graph.forward(*args)

        return run

    assert compile_blocks(list(model), dry_run=lambda: gradients(model), group=None, backend=backend) is None
    broken.append(True)
    images = torch.ones(3, 8)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(images), tower().eval()(images))
    assert caplog.text.count("cannot be compiled") == 1
    calls.clear()
    assert_same(model.train(), tower())
    assert calls


LONG = 2e13  # FLOPs of an image, of which a run of 20 steps of 24 has 480


@pytest.mark.parametrize(
    ("overrides", "device_type", "image_flops", "expected"),
    [
        ((), "cuda", LONG, False),
        (("steps=2000",), "cuda", LONG, True),
        (("steps=2000",), "cpu", LONG, False),
        (("steps=2000",), "cuda", LONG / 100, False),
        (("steps=2000", "deterministic=true"), "cuda", LONG, False),
        (("steps=2000", "compile=false"), "cuda", LONG, False),
        (("compile=true",), "cpu", 1.0, True),
        (("compile=true", "deterministic=true"), "cuda", 1.0, True),
        (("precision=fp8",), "cuda", 1.0, True),
    ],
)
def test_auto_compiles_where_it_pays(
    overrides: tuple[str, ...], device_type: str, image_flops: float, expected: bool
) -> None:
    config = tiny_config(Path("run"), "none.tar", *overrides)
    assert compiles(config, device_type=device_type, image_flops=image_flops, world_size=2) is expected


def test_the_work_of_one_gpu_counts() -> None:
    config = tiny_config(Path("run"), "none.tar", "steps=2000", "data.captions_per_image=2")
    found = [compiles(config, device_type="cuda", image_flops=LONG, world_size=size) for size in (1, 2)]
    assert found == [True, False]  # 4.8e17 and 2.4e17 of the 3e17 that win it back


def test_fp8_must_be_compiled() -> None:
    config = tiny_config(Path("run"), "none.tar", "precision=fp8", "compile=false")
    with pytest.raises(InputError, match="set compile=auto, or precision=bf16"):
        compiles(config, device_type="cuda", image_flops=1.0, world_size=1)


def test_float8_takes_the_linear_layers_that_fit_and_keeps_their_weights() -> None:
    pytest.importorskip("torchao")
    blocks = [nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 20)), nn.Sequential(nn.Linear(32, 48))]
    before = [parameter for block in blocks for parameter in block.parameters()]
    float8_blocks(blocks)
    kinds = [type(layer).__name__ for block in blocks for layer in block]
    assert kinds == ["Float8Linear", "LayerNorm", "Linear", "Float8Linear"]
    assert blocks[0][0].config.pad_inner_dim  # 24 pairs of 257 tokens are no multiple of 16
    after = [parameter for block in blocks for parameter in block.parameters()]
    assert all(one is other for one, other in zip(before, after, strict=True))
