"""A run is a function of (config, seed, step): the same curve on any number of processes, whole or in micro-batches."""

from pathlib import Path

import pytest
from distributed.ranks import run_ranks
from tiny import losses, metrics, saved_tensors, tiny_config, write_scenes

from clipx.config.schema import RunConfig
from clipx.train.trainer import train


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes") / "train"


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """An undisturbed run of 40 steps on one process."""
    config = tiny_config(tmp_path_factory.mktemp("alone") / "run", shards, "steps=40")
    assert run_ranks(train, 1, config) == [0]
    return config


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size"),
    [(2, 4), *(pytest.param(*sizes, marks=pytest.mark.full) for sizes in ((2, 12), (4, 6), (4, 2), (1, 8)))],
)
def test_loss_curve_is_that_of_one_process(
    world_size: int, micro_batch_size: int, alone: RunConfig, shards: Path, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", shards, "steps=40", f"micro_batch_size={micro_batch_size}", "data.workers=1")
    assert run_ranks(train, world_size, config) == [0] * world_size
    curve, expected = losses(tmp_path / "run"), losses(Path(alone.run_dir))
    assert len(curve) == len(expected) == 40
    assert curve == pytest.approx(expected, abs=1e-5)
    scales = [[row["logit_scale"] for row in metrics(folder)] for folder in (tmp_path / "run", Path(alone.run_dir))]
    assert scales[0] == pytest.approx(scales[1], abs=1e-4)  # of 14: the temperature's gradient does not depend on W
    assert expected[-1] < expected[0] - 0.1  # it learns, or equal curves would say nothing


@pytest.mark.full
def test_patch_dropout_does_not_depend_on_ranks_or_micro_batches(shards: Path, tmp_path: Path) -> None:
    curves = []
    for name, world_size, micro_batch_size in (("one", 1, 24), ("two", 2, 3)):
        config = tiny_config(
            tmp_path / name,
            shards,
            f"micro_batch_size={micro_batch_size}",
            "model.image.patch_drop=0.5",
        )
        assert run_ranks(train, world_size, config) == [0] * world_size
        curves.append(losses(tmp_path / name))
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


SIGLIP = [
    "steps=6",
    "loss={type: sigmoid}",
    "model={embed_dim: 32, init_logit_bias: -10, image: {name: vit_base_patch16_siglip_224, image_size: 32, "
    "patch_drop: 0.5, projection: none, options: {patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}}, "
    "text: {width: 32, layers: 2, heads: 2, context_length: 24, pad: 24, pool: last, causal: false, bias: true}}",
    "stages={small: {until_step: 3, image_size: 16, context_length: 12}}",
    "optim={lr: 0.002, warmup_steps: 1, weight_decay: 0.2, image: {layer_decay: 0.8}}",
    "ema.decay=0.9",
]


OTHERS = {
    "pieces": (1, 12, ["activation_checkpointing=1"]),
    "ranks": (2, 12, []),
    "shards": (2, 6, ["parallel.type=fsdp2", "activation_checkpointing=0.5"]),
}


@pytest.mark.parametrize("names", [("shards",), pytest.param(tuple(OTHERS), marks=pytest.mark.full)])
def test_a_model_of_siglips_shape_learns_the_same_on_any_ranks_in_any_micro_batches(
    names: tuple[str, ...], shards: Path, tmp_path: Path
) -> None:
    """Attention pooling of the kept patches, no projection of pictures, texts padded to each stage's length."""
    curves = {}
    for name in ("whole", *names):
        world_size, size, more = OTHERS.get(name, (1, 24, []))
        config = tiny_config(tmp_path / name, shards, *SIGLIP, f"micro_batch_size={size}", *more)
        assert (run_ranks(train, 2, config) if world_size == 2 else [train(config)] * 2) == [0, 0]
        curves[name] = losses(tmp_path / name)
    assert len(curves["whole"]) == 6
    assert all(curve == pytest.approx(curves["whole"], rel=1e-5) for curve in curves.values())
    assert curves["whole"][-1] < curves["whole"][0] - 0.1


@pytest.mark.parametrize(("before", "after"), [pytest.param(1, 2, marks=pytest.mark.full), (2, 1)])
def test_resumes_on_another_number_of_processes(
    before: int, after: int, alone: RunConfig, shards: Path, tmp_path: Path
) -> None:
    # the schedule spans 40 steps in both halves, so the first half is stopped by a file-less means: fewer steps saved
    whole = ["steps=40", "checkpoint.every_steps=20", "checkpoint.keep_last=9"]
    config = tiny_config(tmp_path / "run", shards, *whole)
    assert run_ranks(train, before, config) == [0] * before
    _forget_after(tmp_path / "run", 20)
    assert run_ranks(train, after, config) == [0] * after
    assert losses(tmp_path / "run") == pytest.approx(losses(Path(alone.run_dir)), abs=1e-5)


def test_same_topology_is_bit_identical(shards: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert run_ranks(train, 2, tiny_config(tmp_path / name, shards, "steps=8")) == [0, 0]
    one, two = (
        saved_tensors(tmp_path / name / "checkpoints" / "step-00000008", tmp_path / "scratch")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)


def _forget_after(run_dir: Path, step: int) -> None:
    """What a kill right after the save of `step` leaves behind."""
    for folder in (run_dir / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            folder.rename(run_dir / f"gone-{folder.name}")
