"""What is `auto` in the data order stays what it was when a run began."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shard_files import write_shards
from tiny import tiny_config
from tiny_clip import encoded, picture

from clipx.checkpoint.state import Progress
from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.data.build import build_order
from clipx.data.columns import Wanted
from clipx.data.index.shard_index import ShardIndex, build_index
from clipx.train.build_data import phase_reader, plan_record


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_shards(folder, [30, 20])
    return folder


@pytest.fixture(scope="module")
def index(shards: Path) -> ShardIndex:
    return build_index([str(shards)], index_dir=None)


def config_of(shards: Path, *overrides: str) -> RunConfig:
    return tiny_config(Path("run"), shards, *overrides)  # 24 pairs a batch


def test_auto_keeps_what_the_run_began_with(shards: Path, index: ShardIndex) -> None:
    config = config_of(shards)
    now = plan_record(config, [index])
    begun = replace(now, lanes=8, shuffle_window=64)
    assert (now.lanes, now.shuffle_window) == (24, 2730)
    assert plan_record(config, [index], begun=now) == now
    assert plan_record(config, [index], begun=begun) == begun
    order = build_order(config, [index], lanes=begun.lanes, shuffle_window=begun.shuffle_window)
    assert (order.sources[0].lanes, order.window) == (8, 64)


@pytest.mark.parametrize("change", ["data.lanes=12", "data.shuffle_window=5", "global_batch_size=20", "seed=3"])
def test_what_is_said_or_changed_is_not_what_the_run_began_with(shards: Path, index: ShardIndex, change: str) -> None:
    begun = replace(plan_record(config_of(shards), [index]), lanes=8, shuffle_window=64)
    config = config_of(shards, change)
    assert plan_record(config, [index], begun=begun) == plan_record(config, [index]) != begun


def test_a_batch_of_another_size_goes_on_in_the_same_order(shards: Path, index: ShardIndex) -> None:
    """4 batches of 24, then of 48: each image comes where it would have come."""
    before = plan_record(config_of(shards), [index])
    config = config_of(shards, "global_batch_size=48")
    after = plan_record(config, [index], begun=before)
    assert after == replace(before, global_batch_size=48)
    progress = Progress(step=4, next_batch=4, samples_seen=96, skipped_batches=[1, 5, 6])
    progress.change_batch(before=24, after=48)
    assert (progress.next_batch, progress.skipped_batches) == (4, [0, 2, 3])  # 2 and 3 hold those of 5 and 6
    small, large = (
        build_order(c, [index], lanes=before.lanes, shuffle_window=before.shuffle_window)
        for c in (config_of(shards), config)
    )
    for batch in range(4):
        halves = [ref.sample_id for half in (2 * batch, 2 * batch + 1) for ref in small.sample_refs(half)]
        assert sorted(halves) == sorted(ref.sample_id for ref in large.sample_refs(batch))


def test_of_a_mixture_the_most_lanes_are_kept(shards: Path, index: ShardIndex) -> None:
    sources = f"data.sources={{big: {{shards: [{shards}], weight: 3}}, small: {{shards: [{shards}]}}}}"
    config = config_of(shards, "data.train=null", sources)
    begun = replace(plan_record(config, [index, index]), lanes=4, shuffle_window=9)
    assert [source.lanes for source in build_order(config, [index, index]).sources] == [18, 6]
    assert plan_record(config, [index, index], begun=begun) == begun
    kept = build_order(config, [index, index], lanes=begun.lanes, shuffle_window=begun.shuffle_window)
    assert ([source.lanes for source in kept.sources], kept.window) == ([4, 4], 9)


def test_crops_are_resized_as_the_model_says(tmp_path: Path) -> None:
    write_shards(tmp_path, [30], replaced={i: {"png": encoded(picture(i)), "txt": b"noise"} for i in range(30)})
    index = build_index([str(tmp_path)], index_dir=None)
    images = []
    for interpolation in ("bicubic", "bilinear"):
        config = config_of(tmp_path, f"model.image.interpolation={interpolation}")
        order = build_order(config, [index])
        reader = phase_reader(config, [index], order, phase=phase_at(config, 0), wanted=Wanted())
        images.append(torch.empty(24, 32, 32, 3, dtype=torch.uint8))
        reader.read(0, range(24), out=images[-1])
    spread = [image.float().std(dim=(1, 2)).mean() for image in images]
    assert spread[1] < 0.9 * spread[0]  # of noise that is enlarged
