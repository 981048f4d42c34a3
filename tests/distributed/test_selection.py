"""Chosen batches on several ranks: one choice, each pair where it is trained on, runs that do not depend on W."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from tiny import losses, metrics, saved_tensors, tiny_config, write_scenes
from torch.nn.functional import normalize

from clipx.config.schema import RunConfig
from clipx.errors import InputError
from clipx.losses.selection import Choice, JointSelection, Kind, Score
from clipx.train.trainer import train
from clipx.types import Embeddings

N, G, D = 48, 24, 8
HARD = "select={keep: 0.5, score: hard_learner, chunks: 4}"
STEPS = 10
OF_ALONE = (f"steps={STEPS}", "checkpoint.every_steps=4", "checkpoint.keep_last=9")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes") / "train"


def _choices(kind: Kind, score: Score) -> list[tuple[list[int], dict[str, float]]]:
    return [_choice(kind, score, seed) for seed in range(4)]


def _choice(kind: Kind, score: Score, seed: int) -> tuple[list[int], dict[str, float]]:
    """What this rank of its group has, of pairs that are the same whatever the ranks."""
    size, rank = dist.get_world_size(), dist.get_rank()
    own = slice(rank * N // size, (rank + 1) * N // size)
    generator = torch.Generator().manual_seed(seed)
    rows = [normalize(torch.randn(N, D, generator=generator), dim=1) for _ in range(4)]
    ids_N = torch.arange(N)
    ids_N[[5, 20, 40]] = 11
    models = [
        Embeddings(
            image_BD=image_ND[own],
            text_BD=text_ND[own],
            logit_scale=torch.tensor([scale]),
            logit_bias=torch.tensor([-3.0]),
        )
        for image_ND, text_ND, scale in ((rows[0], rows[1], 6.0), (rows[2], rows[3], 9.0))
    ]
    # tiles of 6 rows for chunks of 6 pairs: the same tiles on 1, 2, 4 and 8 ranks
    select = JointSelection(kind=kind, score=score, size=G, chunks=4, seed=seed, tile_size=6)
    choice: Choice = select(learner=models[0], reference=models[1], ids_B=ids_N[own], index=3, group=dist.group.WORLD)
    figures = {}
    for name, share in choice.figures.items():
        dist.all_reduce(share)
        figures[name] = float(share)
    return choice.places_G.tolist(), figures


@pytest.mark.parametrize("kind", [pytest.param("info_nce", marks=pytest.mark.full), "sigmoid"])
def test_every_number_of_ranks_chooses_the_same(kind: Kind) -> None:
    (expected,) = run_ranks(_choices, 1, kind, "learnability")
    assert len({tuple(places) for places, _ in expected}) == 4
    for world_size in (2, 4):
        for of_rank in run_ranks(_choices, world_size, kind, "learnability"):
            for (places, figures), (expected_places, expected_figures) in zip(of_rank, expected, strict=True):
                assert places == expected_places
                assert figures == pytest.approx(expected_figures, rel=1e-6)


def _chosen(run_dir: Path) -> list[list[int]]:
    rows = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(len(row["samples"]) == G for row in rows)
    return [row["samples"] for row in rows]


def _run(run_dir: Path, shards: Path, world_size: int, *overrides: str) -> RunConfig:
    config = tiny_config(run_dir, shards, HARD, "track.samples=true", *overrides)
    if world_size == 1:
        assert train(config) == 0
    else:
        assert run_ranks(train, world_size, config) == [0] * world_size
    return config


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    _run(run_dir, shards, 1, *OF_ALONE)
    return run_dir


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size", "more"),
    [
        pytest.param(1, 8, (), marks=pytest.mark.full),
        pytest.param(2, 12, ("data.workers=1",), marks=pytest.mark.full),
        pytest.param(4, 2, (), marks=pytest.mark.full),
        (2, 6, ("parallel.type=fsdp2", "activation_checkpointing=1")),
    ],
)
def test_a_run_does_not_depend_on_ranks_or_micro_batches(
    world_size: int, micro_batch_size: int, more: tuple[str, ...], alone: Path, shards: Path, tmp_path: Path
) -> None:
    _run(tmp_path / "run", shards, world_size, f"micro_batch_size={micro_batch_size}", *OF_ALONE, *more)
    assert len(_chosen(alone)) == STEPS
    assert _chosen(tmp_path / "run") == _chosen(alone)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)
    for row, expected in zip(metrics(tmp_path / "run"), metrics(alone), strict=True):
        assert row["select/learner_loss_rest"] == pytest.approx(expected["select/learner_loss_rest"], abs=1e-5)
        assert row["samples_seen"] == row["step"] * G
        assert row["samples_read"] == row["step"] * N
        assert row["select/left_out"] == N - G


def test_the_loss_of_the_chosen_is_that_of_the_step(alone: Path) -> None:
    """What was scored is what is trained on: without dropout both passes give the same."""
    for row in metrics(alone):
        assert row["select/learner_loss"] == pytest.approx(row["loss"], abs=1e-5)
    assert metrics(alone)[0]["epoch"] == pytest.approx(N / 150)


@pytest.mark.full
def test_everything_that_changes_the_passes_goes_with_it(shards: Path, tmp_path: Path) -> None:
    """Patch dropout, colours, stages, an average, smaller pictures for scores, a sigmoid loss, bf16."""
    more = (
        "select.image_size=16",
        "model.image.options={patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}",
        "model.image.patch_drop=0.5",
        "stages={small: {until_step: 3, image_size: 24, context_length: 12}}",
        "ema.decay=0.9",
        "data.augment={color_jitter: {}, flip: 0.5}",
        "loss.type=sigmoid",
        "model.init_logit_bias=-10",
        "steps=6",
    )
    _run(tmp_path / "one", shards, 1, *more)
    _run(tmp_path / "two", shards, 2, "micro_batch_size=6", *more)
    assert _chosen(tmp_path / "one") == _chosen(tmp_path / "two")
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-5)
    _run(tmp_path / "half", shards, 2, "precision=bf16", "steps=3")
    assert len(losses(tmp_path / "half")) == 3


def test_a_resumed_run_chooses_as_an_unbroken_one(alone: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(alone, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > 4:  # what a kill after the save of step 4 leaves
            folder.rename(tmp_path / "run" / f"gone-{folder.name}")
    _run(tmp_path / "run", shards, 1, *OF_ALONE)
    assert len(_chosen(tmp_path / "run")) == STEPS
    assert _chosen(tmp_path / "run") == _chosen(alone)
    one, two = (
        saved_tensors(folder / "checkpoints" / f"step-{STEPS:08d}", tmp_path / "scratch" / str(number))
        for number, folder in enumerate((alone, tmp_path / "run"))
    )
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)


def _refused(config: RunConfig) -> str:
    with pytest.raises(InputError) as error:
        train(config)
    return str(error.value)


@pytest.mark.full
def test_another_share_is_another_data_order(alone: Path, shards: Path, tmp_path: Path) -> None:
    config = _run(tmp_path / "run", shards, 1, "steps=4")
    more: Any = tiny_config(Path(config.run_dir), shards, HARD, "select.keep=0.25", "track.samples=true", "steps=6")
    message = _refused(more)
    assert "since step-00000004: global_batch_size / select.keep: 48 -> 96; restore it, choose a new" in message
    allowed: Any = tiny_config(
        Path(config.run_dir), shards, HARD, "select.keep=0.25", "data.allow_change=true", "steps=6"
    )
    assert train(allowed) == 0
    assert metrics(tmp_path / "run")[-1]["samples_seen"] == 6 * G


def test_a_changed_batch_of_as_many_pairs_read_is_said(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The data order is the same, what is trained on is not."""
    run = (tmp_path / "run", shards, HARD)
    assert train(tiny_config(*run, "steps=3")) == 0
    with caplog.at_level(logging.WARNING):
        assert train(tiny_config(*run, "steps=6", "global_batch_size=12", "select.keep=0.25")) == 0
    assert "changed config: global_batch_size: 24 -> 12; steps: 3 -> 6; select.keep: 0.5 -> 0.25" in caplog.text
    assert [row["samples_seen"] for row in metrics(tmp_path / "run")] == [24, 48, 72, 84, 96, 108]
    assert [row["samples_read"] for row in metrics(tmp_path / "run")] == [N * step for step in range(1, 7)]


def test_ranks_must_share_what_is_read(shards: Path, tmp_path: Path) -> None:
    config: Any = tiny_config(tmp_path / "run", shards, "select={keep: 0.96, score: hard_learner, chunks: 4}")
    messages = run_ranks(_refused, 2, config)
    assert messages[0] == messages[1]
    assert (
        "select.keep=0.96: global_batch_size=24 / keep = 25 is no whole number of pairs that 2 processes" in messages[0]
    )
    assert "nearest keep that works: 1 (24 pairs), 0.923076923 (26 pairs)" in messages[0]
