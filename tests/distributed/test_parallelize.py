"""FSDP2 is DDP in less memory: the same losses on any number of ranks, checkpoints, evaluations, skipped steps."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from tiny import losses, metrics, saved_tensors, tiny_config, write_scenes
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import clipx
from clipx.config.schema import RunConfig
from clipx.distributed.block_transforms import checkpoint_blocks, compile_blocks
from clipx.distributed.parallelize import full_tensor, parallelize, reshard
from clipx.distributed.runtime import start_runtime
from clipx.models.clip import CLIP, build_model
from clipx.models.dry_run import dry_run
from clipx.objectives.contrastive import ContrastiveObjective
from clipx.optim.optimizers import build_optimizer
from clipx.train import build_stepper
from clipx.train.trainer import train
from clipx.types import Batch, Embeddings, tensors_of

FSDP2 = "parallel.type=fsdp2"
STEPS = 20
DEEP = ("model.image.options={patch_size: 16, embed_dim: 32, depth: 3, num_heads: 2}", "model.text.layers=3")
OVERRIDES = (f"steps={STEPS}", "model.init_logit_bias=-1", "model.image.patch_drop=0.25")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def alone(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """An undisturbed run under DDP on one process."""
    config = tiny_config(tmp_path_factory.mktemp("alone") / "run", scenes / "train", *OVERRIDES)
    assert run_ranks(train, 1, config) == [0]
    return config


def curve(run_dir: Path | str) -> list[float]:
    return losses(Path(run_dir))


@pytest.mark.parametrize(
    ("kind", "world_size", "micro_batch_size"),
    [
        ("fsdp2", 2, 12),
        *[pytest.param(*case, marks=pytest.mark.full) for case in (("fsdp2", 1, 24), ("fsdp2", 4, 6))],
        # gradient cache, k = 3
        ("ddp", 2, 4),
        *[pytest.param("fsdp2", *sizes, marks=pytest.mark.full) for sizes in ((1, 8), (2, 4), (4, 2))],
        pytest.param("ddp", 1, 8, marks=pytest.mark.full),
    ],
)
def test_losses_are_those_of_ddp_on_one_process(
    kind: str, world_size: int, micro_batch_size: int, alone: RunConfig, scenes: Path, tmp_path: Path
) -> None:
    overrides = (*OVERRIDES, f"parallel.type={kind}", f"micro_batch_size={micro_batch_size}")
    config = tiny_config(tmp_path / "run", scenes / "train", *overrides)
    assert run_ranks(train, world_size, config) == [0] * world_size
    expected = curve(alone.run_dir)
    assert curve(tmp_path / "run") == pytest.approx(expected, abs=1e-5)
    for figure in ("logit_scale", "grad_norm"):
        both = [[row[figure] for row in metrics(Path(folder))] for folder in (tmp_path / "run", alone.run_dir)]
        assert both[0] == pytest.approx(both[1], rel=1e-5), figure
    assert expected[-1] < expected[0] - 0.05  # it learns, or equal curves would say nothing


@pytest.mark.full
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("ddp", 1), ("fsdp2", 2)),
        (("fsdp2", 2), ("ddp", 1)),
        (("ddp", 2), ("fsdp2", 4)),
        (("fsdp2", 4), ("ddp", 2)),
    ],
)
def test_a_run_goes_on_under_the_other(
    before: tuple[str, int], after: tuple[str, int], alone: RunConfig, scenes: Path, tmp_path: Path
) -> None:
    for (kind, world_size), last in ((before, 8), (after, STEPS)):
        overrides = (*OVERRIDES, f"parallel.type={kind}", "checkpoint.every_steps=8", "checkpoint.keep_last=9")
        config = tiny_config(tmp_path / "run", scenes / "train", *overrides)
        assert run_ranks(train, world_size, config) == [0] * world_size
        if last < STEPS:  # what a kill right after the save of step 8 leaves behind
            for folder in (tmp_path / "run" / "checkpoints").iterdir():
                if int(folder.name.removeprefix("step-")) > last:
                    folder.rename(tmp_path / f"gone-{folder.name}")
    assert curve(tmp_path / "run") == pytest.approx(curve(alone.run_dir), abs=1e-5)


def test_evaluates_while_it_trains_and_its_checkpoint_is_a_model(scenes: Path, tmp_path: Path) -> None:
    evaluation = f"evaluate.scenes={{type: zeroshot, data: {next(scenes.glob('wds_*'))}, every_steps: 2}}"
    scores = {}
    for name, world_size, kind in (("ddp", 1, "ddp"), ("fsdp2", 2, "fsdp2")):
        overrides = ("steps=3", evaluation, f"parallel.type={kind}", "checkpoint.every_steps=1")
        config = tiny_config(tmp_path / name, scenes / "train", *overrides)
        assert run_ranks(train, world_size, config) == [0] * world_size
        files = sorted((tmp_path / name / "eval").iterdir())
        scores[name] = [file.read_text() for file in files]
        assert len(files) == 2
    assert scores["ddp"] == scores["fsdp2"]
    assert curve(tmp_path / "ddp") == pytest.approx(curve(tmp_path / "fsdp2"), abs=1e-5)
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    embedded = [clipx.load(tmp_path / name).encode_image(image) for name in scores]
    torch.testing.assert_close(*embedded, rtol=0, atol=1e-4)


def train_with_nan(config: RunConfig, bad_rank: int, bad_steps: list[int]) -> int:
    """`train`, with images that turn to NaN on one rank in some steps."""
    original = ContrastiveObjective.forward

    def forward(objective: ContrastiveObjective, model: Any, piece: Any, *, for_terms: bool) -> Embeddings:
        embeddings = original(objective, model, piece, for_terms=for_terms)
        if piece.index in bad_steps and dist.get_rank() == bad_rank:
            return replace(embeddings, image_BD=embeddings.image_BD * float("nan"))
        return embeddings

    ContrastiveObjective.forward = forward  # type: ignore[method-assign]
    return train(config)


@pytest.mark.parametrize("bad_rank", [pytest.param(0, marks=pytest.mark.full), 1])
def test_a_step_with_nan_changes_nothing_on_any_rank(bad_rank: int, scenes: Path, tmp_path: Path) -> None:
    overrides = ("steps=4", FSDP2, "checkpoint.every_steps=1", "checkpoint.keep_last=9", "optim.warmup_steps=0")
    config = tiny_config(tmp_path / "run", scenes / "train", *overrides)
    assert run_ranks(train_with_nan, 2, config, bad_rank, [3]) == [0, 0]
    assert metrics(tmp_path / "run")[-1]["skipped_steps"] == 1
    saved = [
        saved_tensors(tmp_path / "run" / "checkpoints" / f"step-{step:08d}", tmp_path / f"scratch-{step}")
        for step in (2, 3, 4)
    ]
    assert any("exp_avg" in name for name in saved[1])
    assert not all(saved[0][name].equal(saved[1][name]) for name in saved[1])  # a good step changes something
    assert all(saved[1][name].equal(saved[2][name]) for name in saved[1])


def wrapped(config: RunConfig) -> dict[str, Any]:
    """What FSDP2 made of a tiny model."""
    with start_runtime(config) as runtime:
        towers: CLIP = build_model(config.model, vocab_size=49408, seed=0)
        blocks = [block for blocks in towers.block_lists() for block in blocks]
        names = [name for name, _ in towers.named_parameters()]
        model, optimizer = parallelize(runtime, towers, build_optimizer(config.optim, towers), blocks=blocks)
        own = {id(parameter) for parameter in model.parameters()}
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        images_BHWC = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
        with torch.no_grad(), runtime.accelerator.autocast():
            towers.eval()
            embedded_BD = towers.encode_image(images_BHWC)
        gathered = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
        reshard(model)
        return {
            "names": [name for name, _ in model.named_parameters()] == names,
            "held": own == held,
            "units": [isinstance(block, FSDPModule) for block in blocks] + [isinstance(model, FSDPModule)],
            "sharded": all(isinstance(parameter, DTensor) for parameter in model.parameters()),
            "float32": {parameter.dtype for parameter in model.parameters()},
            "gathered": gathered,
            "embedded": embedded_BD.dtype,
            "scale": full_tensor(towers.log_logit_scale.detach()).item(),
        }


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_block_and_the_rest_are_sharded(world_size: int, precision: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", "none.tar", FSDP2, f"precision={precision}")
    for found in run_ranks(wrapped, world_size, config):
        assert found["names"]
        assert found["held"]  # the optimizer holds the shards, each once
        assert found["units"] == [True] * 3
        assert found["sharded"]
        assert found["float32"] == {torch.float32}
        assert "log_logit_scale" in found["gathered"]  # `reshard` had something to do
        assert found["embedded"] is {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        assert found["scale"] == pytest.approx(2.6593, abs=1e-4)


def gradients_through_blocks(config: RunConfig, fraction: float, compiled: bool) -> tuple[list[str], dict[str, Tensor]]:
    """Every gradient of one pass over 6 pairs, with checkpointed and compiled blocks; and the dtypes of embeddings."""
    with start_runtime(config) as runtime:
        towers = build_model(config.model, vocab_size=49408, seed=0)
        for blocks in towers.block_lists():
            checkpoint_blocks(blocks, fraction=fraction)
        every_block = [block for blocks in towers.block_lists() for block in blocks]
        model, _ = parallelize(runtime, towers, build_optimizer(config.optim, towers), blocks=every_block)
        run = dry_run(
            lambda batch: tensors_of(towers(batch, seed=0)).values(),
            image_size=32,
            context_length=24,
            device=torch.device("cpu"),
        )
        if compiled:
            rehearsal = partial(run, 2)
            assert compile_blocks(every_block, dry_run=rehearsal, group=runtime.group, backend="aot_eager") is None
        dtypes: list[str] = []

        def forward(batch: Batch) -> Iterable[Tensor]:
            embeddings: Embeddings = model(batch, seed=0)
            dtypes.extend(str(tensor.dtype) for tensor in (embeddings.image_BD, embeddings.logit_scale))
            return tensors_of(embeddings).values()

        towers.zero_grad(set_to_none=True)
        dry_run(forward, image_size=32, context_length=24, device=torch.device("cpu"))(6)
        return dtypes, {name: full_tensor(parameter.grad) for name, parameter in towers.named_parameters()}


@pytest.mark.parametrize(
    ("fraction", "compiled"),
    [(1.0, False), *(pytest.param(fraction, True, marks=pytest.mark.full) for fraction in (0.0, 1.0))],
)
def test_checkpointed_and_compiled_blocks_shard(fraction: float, compiled: bool, tmp_path: Path) -> None:
    torch.compiler.reset()
    config = tiny_config(tmp_path, "none.tar", FSDP2)
    plain = run_ranks(gradients_through_blocks, 1, tiny_config(tmp_path, "none.tar"), 0.0, False)[0][1]
    for _, gradients in run_ranks(gradients_through_blocks, 2, config, fraction, compiled):
        assert gradients.keys() == plain.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_bf16_computes_in_bf16_and_sums_in_float32(fraction: float, tmp_path: Path) -> None:
    results = [
        run_ranks(
            gradients_through_blocks, 2, tiny_config(tmp_path, "none.tar", "precision=bf16", kind), fraction, False
        )
        for kind in ("parallel.type=ddp", FSDP2)
    ]
    for (ddp_dtypes, ddp), (dtypes, sharded) in zip(*results, strict=True):
        assert dtypes == ddp_dtypes == ["torch.bfloat16", "torch.float32"]
        for name, gradient in sharded.items():
            assert gradient.dtype == torch.float32
            assert (gradient - ddp[name]).norm() <= 0.05 * ddp[name].norm() + 1e-3, name


def graphs_of_steps(config: RunConfig, fraction: float, broken_rank: int) -> tuple[str | None, int, int]:
    """Why blocks are not compiled, and how many graphs the rehearsal made, and two steps with a gradient cache."""
    with start_runtime(config) as runtime:
        towers = build_model(config.model, vocab_size=49408, seed=0)
        towers.use_few_shapes(True)
        for blocks in towers.block_lists():
            checkpoint_blocks(blocks, fraction=fraction)
        wrapped, _ = parallelize(runtime, towers, build_optimizer(config.optim, towers), blocks=towers.blocks())

        def roots(model: Any, batch: Batch) -> Iterable[Tensor]:
            with runtime.accelerator.autocast():
                return tensors_of(model(batch, seed=0)).values()

        def refuse(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            raise RuntimeError("no C++ compiler")

        sizes = {"image_size": 32, "context_length": 24, "device": torch.device("cpu")}
        step = dry_run(partial(roots, wrapped), **sizes)
        counter = CompileCounterWithBackend("aot_eager")
        problem = compile_blocks(
            towers.blocks(),
            dry_run=partial(dry_run(partial(roots, towers), **sizes), 4),
            group=runtime.group,
            dynamic_blocks=towers.block_lists()[1],
            without_gradients=True,
            backend=refuse if dist.get_rank() == broken_rank else counter,
        )
        towers.zero_grad(set_to_none=True)
        rehearsed = counter.frame_count
        for _ in range(2):
            with torch.no_grad():
                step(4)
            step(4)
        return problem, rehearsed, counter.frame_count - rehearsed


@pytest.mark.parametrize(
    ("world_size", "kind", "precision", "fraction"),
    [
        (1, "fsdp2", "fp32", 1.0),  # every rank compiles for itself, so one shows it in half the time
        *[
            pytest.param(2, kind, *how, marks=pytest.mark.full)
            for kind in ("ddp", "fsdp2")
            for how in (("bf16", 0.0), ("fp32", 1.0))
        ],
    ],
)
def test_a_step_compiles_nothing_after_the_rehearsal(
    world_size: int, kind: str, precision: str, fraction: float, tmp_path: Path
) -> None:
    torch.compiler.reset()
    config = tiny_config(tmp_path, "none.tar", f"precision={precision}", f"parallel.type={kind}", *DEEP)
    for problem, rehearsed, more in run_ranks(graphs_of_steps, world_size, config, fraction, -1):
        assert problem is None
        assert rehearsed >= 8  # each tower's last block and the others, with and without gradients
        assert more == 0


@pytest.mark.parametrize("broken_rank", [0, 1])
def test_a_rank_that_cannot_compile_keeps_up_with_the_others(broken_rank: int, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "none.tar", FSDP2, *DEEP)
    for problem, _, more in run_ranks(graphs_of_steps, 2, config, 0.0, broken_rank, timeout_s=60):
        assert "no C++ compiler" in str(problem)
        assert more == 0  # it runs, and not through the compiler


def train_uncompiled(config: RunConfig) -> tuple[int, list[bool]]:
    """`train` where nothing can be compiled, and whether FSDP2 already had the blocks that were to be."""
    sharded: list[bool] = []

    def compile_blocks(blocks: Any, *, dry_run: Any, **options: object) -> str:
        sharded.extend(isinstance(block, FSDPModule) for block in blocks)
        dry_run()
        return "no C++ compiler"

    build_stepper.compile_blocks = compile_blocks
    return train(config), sharded


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_run_that_cannot_compile_is_one_that_does_not(
    kind: str, alone: RunConfig, scenes: Path, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", scenes / "train", *OVERRIDES, "compile=true", f"parallel.type={kind}")
    for exit_code, sharded in run_ranks(train_uncompiled, 2, config):
        assert exit_code == 0
        assert sharded == [kind == "fsdp2"] * 2
    assert curve(tmp_path / "run") == pytest.approx(curve(alone.run_dir), abs=1e-5)
