"""Attention in one tile under Triton's interpreter, on the CPU, against float64; and what torch knows of it.

The interpreter must be chosen before triton is imported, so one test runs this file again in a process of its own.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from reference.attention import packed_attention
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from clipx.config.model import TimmImageConfig, TransformerTextConfig
from clipx.models import packing, text_tower, vit
from clipx.models.attention import one_tile, trial
from clipx.models.attention.one_tile import has_one_tile, one_tile_attention
from clipx.models.attention.trial import Shape
from clipx.models.text_tower import TextTower
from clipx.models.vision_tower import build_vision_tower

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
full = pytest.mark.full
interpreted = pytest.mark.skipif(not INTERPRETING, reason="runs in the process that the first test starts")


@pytest.mark.skipif(INTERPRETING, reason="is that process")
@pytest.mark.parametrize("rows", ["not full", pytest.param("full", marks=full)])
def test_this_file_under_the_interpreter(rows: str) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-m", rows, __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def draw(tokens: int, heads: int, channels: int, *, dtype: torch.dtype = torch.float32, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(tokens + channels)
    drawn = torch.randn(tokens, 3, heads, channels, generator=generator)
    drawn[:, :2] *= size**0.5
    return drawn.to(dtype).requires_grad_()


def bounds_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def assert_exact(mixed_THE: Tensor, qkv_T3HE: Tensor, lengths: list[int], *, causal: bool, tolerance: float) -> None:
    """In value and in the gradient of a weighted sum, relative to each one's largest entry."""
    wide = qkv_T3HE.detach().double().requires_grad_()
    expected = packed_attention(wide, lengths, causal=causal, scale=wide.shape[-1] ** -0.5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9)).to(qkv_T3HE.dtype)
    (ours,) = torch.autograd.grad(mixed_THE, qkv_T3HE, weights)
    (theirs,) = torch.autograd.grad(expected, wide, weights.double())
    for found, wanted in [(mixed_THE, expected), *zip(ours.unbind(1), theirs.unbind(1), strict=True)]:
        largest = wanted.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(found.double() / largest, wanted / largest, rtol=0, atol=tolerance)


@interpreted
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "channels"),
    [
        (50, 64),
        *[pytest.param(*shape, marks=full) for shape in ((1, 64), (16, 32), (17, 80), (33, 8), (64, 64), (128, 128))],
        (65, 72),
    ],
)
def test_sequences_of_one_length(num_tokens: int, channels: int, causal: bool) -> None:
    qkv = draw(3 * num_tokens, 2, channels)
    mixed = one_tile_attention(qkv, None, longest=num_tokens, causal=causal)
    assert_exact(mixed, qkv, [num_tokens] * 3, causal=causal, tolerance=2e-6)


@interpreted
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("longest", [77, pytest.param(128, marks=full)])
def test_texts_of_any_length(longest: int, causal: bool) -> None:
    lengths = [3, 0, 32, 33, 1, 64, 65, 77, 0]
    qkv = draw(sum(lengths), 2, 32)
    mixed = one_tile_attention(qkv, bounds_of(lengths), longest=longest, causal=causal)
    assert_exact(mixed, qkv, lengths, causal=causal, tolerance=2e-6)


@interpreted
def test_only_tiles_that_can_be_needed_are_launched_and_they_suffice() -> None:
    lengths = [3, 17, 32]
    qkv = draw(sum(lengths), 1, 32)
    mixed = one_tile_attention(qkv, bounds_of(lengths), longest=32, causal=True)
    assert_exact(mixed, qkv, lengths, causal=True, tolerance=2e-6)


@interpreted
def test_half_precision() -> None:
    """In float16, since the interpreter multiplies bfloat16 wrongly; bfloat16 is for test_one_tile_cuda.py."""
    qkv = draw(100, 2, 64, dtype=torch.float16)
    mixed = one_tile_attention(qkv, None, longest=50, causal=False)
    assert mixed.dtype == torch.float16
    assert_exact(mixed, qkv, [50, 50], causal=False, tolerance=2 * torch.finfo(torch.float16).eps)


@interpreted
@pytest.mark.parametrize("shift", [-120.0, 0.0, 120.0])
def test_large_logits_of_either_sign(shift: float) -> None:
    """Near -120 exp(0 - logsumexp) overflows, which a kernel that forgets to mask multiplies by 0."""
    qkv = draw(100, 2, 64, size=12.0)
    with torch.no_grad():
        qkv[:, 0, :, 0], qkv[:, 1, :, 0] = 8.0, shift
    mixed = one_tile_attention(qkv, None, longest=50, causal=False)
    assert_exact(mixed, qkv, [50, 50], causal=False, tolerance=1e-4)  # 120 eps, exponentiated


@interpreted
def test_the_factor_is_free_and_results_repeat() -> None:
    qkv = draw(40, 2, 32)
    wanted = packed_attention(qkv.double(), [20, 20], causal=False, scale=0.3)
    first, second = (one_tile_attention(qkv, None, longest=20, causal=False, scale=0.3) for _ in range(2))
    torch.testing.assert_close(first.double(), wanted, rtol=0, atol=2e-6)
    assert torch.equal(first, second)


@interpreted
def test_no_sequence_is_no_launch() -> None:
    empty = torch.empty(0, 3, 2, 32, requires_grad=True)
    one_tile_attention(empty, bounds_of([]), longest=20, causal=True).sum().backward()
    assert empty.grad is not None
    assert empty.grad.shape == empty.shape


@interpreted
@pytest.mark.parametrize("bounds", [pytest.param(None, marks=full), bounds_of([20, 20])])
def test_torchs_own_checks_of_an_operation(bounds: Tensor | None) -> None:
    torch.library.opcheck(torch.ops.clipx.one_tile_attention.default, (draw(40, 2, 32), bounds, 20, False, 0.2))


@full
@interpreted
def test_a_checkpointed_and_compiled_layer_gives_the_same() -> None:
    layer = nn.Linear(64, 3 * 64)
    x_TC = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))

    def attend(x: Tensor) -> Tensor:
        return one_tile_attention(layer(x).unflatten(-1, (3, 2, -1)), None, longest=20, causal=False)

    expected = attend(x_TC)
    wanted = torch.autograd.grad(expected.square().sum(), layer.weight)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    for way in (compiled, lambda x: checkpoint(attend, x, use_reentrant=False)):
        result = way(x_TC)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(torch.autograd.grad(result.square().sum(), layer.weight), wanted)


@interpreted
@pytest.mark.parametrize("causal", [pytest.param(False, marks=full), True])
def test_the_trial_of_a_run_accepts_it(causal: bool) -> None:
    shape = Shape(
        name="sequences",
        lengths=(50, 50),
        num_checked=2,
        heads=2,
        channels=64,
        causal=causal,
        dtype=torch.float16,
        device=torch.device("cpu"),
    )

    def attention(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
        bounds = bounds_of(list(lengths)) if causal else None
        return partial(one_tile_attention, bounds=bounds, longest=max(lengths), causal=causal)

    assert [trial._problem(shape, attention, logit=logit) for logit in (0.0, -120.0)] == [None, None]


@interpreted
def test_one_compiled_graph_serves_texts_of_all_lengths() -> None:
    compiled = torch.compile(one_tile_attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for lengths in ([20, 30, 2, 1], [3, 60, 7, 5, 9]):
        qkv = draw(sum(lengths), 2, 32)
        with torch._dynamo.config.patch(error_on_recompile=lengths[0] != 20):
            mixed = compiled(qkv, bounds_of(lengths), longest=max(lengths), causal=True)
        assert_exact(mixed, qkv, lengths, causal=True, tolerance=2e-6)


class Recorded:
    """In place of a kernel: the number of programs and the lengths for which they work."""

    def __init__(self) -> None:
        self.launches: list[tuple[int, int, int]] = []

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda *args, FEWEST, TILE, **constants: self.launches.append((*grid, FEWEST, TILE))


@pytest.mark.parametrize(
    ("longest", "has_bounds", "launches"),
    [
        (77, True, [(6, 0, 32), (6, 32, 64), (6, 64, 128)]),
        (20, True, [(6, 0, 32)]),
        (50, False, [(4, 0, 64)]),
    ],
)
def test_every_sequence_has_one_launch_of_the_smallest_tile(
    longest: int, has_bounds: bool, launches: list[tuple[int, int, int]]
) -> None:
    kernel = Recorded()
    bounds = bounds_of([77, 3, 20]) if has_bounds else None
    one_tile._launch(kernel, draw(100, 2, 32), bounds=bounds, longest=longest, causal=True, scale=1.0)
    assert kernel.launches == launches


def test_flops_are_those_of_the_products() -> None:
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        qkv = torch.empty(100, 3, 2, 64, dtype=torch.bfloat16, requires_grad=True)
        one_tile_attention(qkv, None, longest=50, causal=False).sum().backward()
    assert counter.get_total_flops() == (2 + 5) * 2 * 2 * 2 * 50 * 50 * 64


@pytest.mark.parametrize(
    ("num_tokens", "channels", "has"),
    [(50, 64, True), (128, 128, True), (129, 64, False), (50, 136, False), (50, 60, False)],
)
def test_shapes_that_have_kernels(num_tokens: int, channels: int, has: bool) -> None:
    assert has_one_tile(num_tokens=num_tokens, channels=channels) == has


def assert_alike(tower: nn.Module, found: Tensor, expected: Tensor, wanted: tuple[Tensor, ...]) -> None:
    """In value and every gradient, relative to each one's largest entry."""
    ours = torch.autograd.grad(found.square().sum(), list(tower.parameters()))
    for one, other in zip((found, *ours), (expected, *wanted), strict=True):
        largest = other.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(one / largest, other / largest, rtol=0, atol=1e-5)


@interpreted
def test_an_image_tower_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    options = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    config = TimmImageConfig(name="vit_base_patch32_clip_224", image_size=32, options=options)
    tower = build_vision_tower(config, embed_dim=8)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    expected, asked = tower(images), []
    wanted = torch.autograd.grad(expected.square().sum(), list(tower.parameters()))

    def kernel_for(qkv: Tensor, choice: object) -> str:
        asked.append(tuple(qkv.shape))
        return "one_tile"

    monkeypatch.setattr(vit, "kernel_for", kernel_for)
    found = tower(images)
    assert asked == [(2, 17, 3, 2, 16)] * 2
    assert_alike(tower, found, expected, wanted)


@interpreted
@pytest.mark.parametrize("bucketed", [pytest.param(False, marks=full), True])
def test_a_text_tower_gives_the_same(bucketed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tower = TextTower(TransformerTextConfig(context_length=40, width=32, layers=2, heads=2), vocab_size=50, embed_dim=8)
    lengths = [40, 3, 17]
    batch = (torch.randint(0, 50, (sum(lengths),)), torch.tensor(lengths))
    expected, asked = tower(*batch, max_length=40), []
    wanted = torch.autograd.grad(expected.square().sum(), list(tower.parameters()))

    def takes(qkv: Tensor, dtype: object, *, longest: int) -> bool:
        asked.append(longest)
        return True

    monkeypatch.setattr(packing, "_one_tile_takes", takes)
    monkeypatch.setattr(text_tower, "group_by_length", lambda tokens, lengths: (tokens, lengths, [], None))
    tower.bucketed = bucketed
    found = tower(*batch, max_length=40)
    assert asked == [40]
    assert_alike(tower, found, expected, wanted)
