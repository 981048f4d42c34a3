"""What is looked at before a step is built."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tiny import tiny_config
from tiny_clip import CLIP_VOCABULARY
from torch import nn

from clipx.config.parallel import DdpConfig, Fsdp2Config
from clipx.distributed.runtime import Runtime
from clipx.errors import InputError
from clipx.models.clip import build_model
from clipx.train import build_stepper
from clipx.train.build_stepper import _warn_of_batch_statistics, copied_dtype, odd_sizes


def test_widths_that_tensor_cores_cannot_fill_are_named() -> None:
    blocks = [nn.Sequential(nn.Linear(128, 200), nn.GELU(), nn.Linear(200, 128)), nn.Linear(64, 100)]
    assert odd_sizes(blocks) == [100, 200]
    assert odd_sizes([nn.Linear(768, 3072)]) == []


class Objective:
    """As much of one as compiling asks for."""

    model = nn.Linear(1, 1)
    coupled = {"contrastive": None}

    def __init__(self) -> None:
        self.few_shapes: list[bool] = []

    def block_lists(self) -> list[list[nn.Module]]:
        return [[self.model]]

    def varying_blocks(self) -> list[nn.Module]:
        return []

    def use_few_shapes(self, on: bool) -> None:
        self.few_shapes.append(on)


def compile_where(
    problem: str | None, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> tuple[Objective, dict[str, Any]]:
    """The objective, and with what its blocks were compiled, on two ranks in pieces of 6 of 12 pairs."""
    options: dict[str, Any] = {}
    monkeypatch.setattr(build_stepper, "compile_blocks", lambda blocks, **given: options.update(given) or problem)
    config, objective = tiny_config(Path("run"), "none.tar", *overrides), Objective()
    runtime = SimpleNamespace(world_size=2, host_group=None, is_main=True)
    build_stepper._compile(
        config, cast(Any, runtime), cast(Any, objective), micro_batch_size=6, run=lambda num_pairs: None
    )
    return objective, options


def test_what_cannot_be_compiled_goes_on_in_its_own_shapes_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    objective, _ = compile_where("no C++ compiler", monkeypatch)
    assert objective.few_shapes == [True, False]
    [warning] = [record.getMessage() for record in caplog.records]
    assert "no C++ compiler" in warning


def test_fp8_that_cannot_be_compiled_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no C\+\+ compiler.*set precision=bf16"):
        compile_where("no C++ compiler", monkeypatch, "precision=fp8")


@pytest.mark.parametrize(("global_batch_size", "cached"), [(24, True), (12, False)])
def test_the_gradient_cache_has_passes_without_gradients(
    global_batch_size: int, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, options = compile_where(None, monkeypatch, f"global_batch_size={global_batch_size}")
    assert options["without_gradients"] is cached
    assert objective.few_shapes == [True]


def test_weights_are_copied_where_autocast_would_cast_them_on_cuda() -> None:
    def dtype(precision: str, device: str = "cuda", parallel: Any = None) -> torch.dtype | None:
        config: Any = SimpleNamespace(precision=precision, parallel=parallel or DdpConfig())
        runtime: Any = SimpleNamespace(device=torch.device(device))
        return copied_dtype(config, runtime)

    assert (dtype("bf16"), dtype("fp16")) == (torch.bfloat16, torch.float16)
    assert (dtype("fp32"), dtype("fp8")) == (None, None)
    assert dtype("bf16", device="cpu") is None
    assert dtype("bf16", parallel=Fsdp2Config()) is None


@pytest.mark.parametrize(("locked", "warns"), [("0", True), ("5", True), ("all", False)])
def test_statistics_of_a_batch_are_warned_of_unless_they_never_move(
    locked: str, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = "model.image={name: test_resnet, image_size: 32, options: {}}"
    config = tiny_config(tmp_path, "none.tar", image, f"optim.image.locked_steps={locked}")
    model = build_model(config.model, vocab_size=CLIP_VOCABULARY, seed=0)
    runtime = cast(Runtime, SimpleNamespace(is_main=True))
    _warn_of_batch_statistics(config, runtime, model)
    assert ("test_resnet has BatchNorm2d" in caplog.text) == warns
