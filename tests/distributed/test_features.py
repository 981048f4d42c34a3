"""Features that are computed once: equal bytes on any number of ranks, a killed pass, and the run that reads them."""

import json
import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from fit_runs import NUM_TRAIN, sample, tiny_fit, write_table_shards
from shard_files import write_shards

from clipx.checkpoint.store import checkpoints_of
from clipx.checkpoint.tensors import load_weights
from clipx.data.build import open_fit_samples, open_fit_targets
from clipx.data.index.shard_index import build_index
from clipx.data.tokenizer import build_tokenizer
from clipx.errors import RunError
from clipx.fitting import features
from clipx.fitting.features import FeatureSet, Pass, kept_samples
from clipx.fitting.resolve import resolve
from clipx.models.fused import build_fused_model
from clipx.pretrained import Pretrained
from clipx.train.liveness.status import Status
from clipx.train.trainer import run

BLOCK = 16  # six blocks
BAD = {3: {"json": b"no json"}, 50: {"json": b'{"title": "a red thing", "colour": "red"}', "png": b"no picture"}}


def shards_of(tmp_path):
    write_table_shards(tmp_path)
    write_shards(tmp_path / "train", [60, NUM_TRAIN - 60], replaced={i: sample(i) for i in range(NUM_TRAIN)} | BAD)
    return tmp_path


def config_of(folder, name, *overrides):
    return resolve(tiny_fit(folder / name, folder, "encoder.train=frozen", *overrides))


def compute(folder, name, stop_after=None, end=None, overrides=()):
    """The pass over the training set of run `name`; returns how many blocks of vectors were computed here."""
    torch.set_num_threads(1)
    features.BLOCK = BLOCK
    config, count = config_of(folder, name, *overrides), 0
    model = build_fused_model(config, vocab_size=build_tokenizer(config.model.text).vocab_size)
    index = build_index(config.data.train_shards)
    real, rounds = features._with_vectors, 0

    def counted(*args):
        nonlocal count
        count += 1
        return real(*args)

    def between():
        nonlocal rounds
        rounds += 1
        if rounds == stop_after:
            end()

    features._with_vectors = counted
    work = Pass(
        config=config,
        pretrained=Pretrained(model, config.model),
        group=dist.group.WORLD if dist.is_initialized() else None,
        between=between,
    )
    try:
        kept_samples(
            work,
            FeatureSet(
                name="train",
                index=index,
                inputs=open_fit_samples(config, index, targets=False),
                targets=open_fit_targets(config, index),
            ),
        )
    finally:
        features._with_vectors = real
    return count


def stopped():
    raise KeyboardInterrupt


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def content(folder, name):
    """The arrays by the kind of their entry and their file."""
    return {
        f"{path.parent.name.partition('-')[0]}/{path.name}": path.read_bytes()
        for path in (folder / name / "features").glob("train*/*.npy")
    }


def on_rank(folder, name):
    return compute(Path(folder), name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Shards, and what one process keeps of them in run `alone`."""
    folder = shards_of(tmp_path_factory.mktemp("features"))
    assert compute(folder, "alone") == 6
    return folder


def test_two_ranks_keep_the_same_bytes_and_share_the_work(alone):
    assert run_ranks(on_rank, 2, str(alone), "two") == [3, 3]
    assert content(alone, "two") == content(alone, "alone")


def test_what_is_kept_is_not_computed_again(alone):
    assert compute(alone, "alone") == 0


def test_other_targets_cost_no_pass_of_a_tower(alone):
    """Weights of targets are in no array; a target that is transformed is another column."""
    shutil.copytree(alone / "alone" / "features", alone / "asked" / "features")
    assert compute(alone, "asked", overrides=["targets.price.weight=2"]) == 0
    assert len(kept_targets(alone / "asked")) == 1
    assert compute(alone, "asked", overrides=["targets.price.transform=none"]) == 0
    assert not np.array_equal(*kept_targets(alone / "asked"), equal_nan=True)


def kept_targets(run_dir):
    return [np.load(path) for path in (run_dir / "features").glob("train_targets-*/targets_BO.npy")]


def test_bad_samples_are_recorded_with_their_reasons(alone):
    records = json.loads(np.frombuffer(content(alone, "alone")["train/bad.npy"], np.uint8)[128:].tobytes())
    assert {record["sample_id"] for record in records} == BAD.keys()
    assert all(record["reason"] and record["key"] for record in records)


def test_a_killed_pass_is_taken_up_on_another_number_of_ranks(alone):
    process = get_context("forkserver").Process(target=compute, args=(alone, "killed", 2, killed))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (parts,) = (alone / "killed" / "features").iterdir()
    (parts / ".00000005.new").write_bytes(b"half")
    assert sum(run_ranks(on_rank, 2, str(alone), "killed")) == 4
    assert content(alone, "killed") == content(alone, "alone")


def test_a_damaged_block_is_removed_and_named(alone):
    with pytest.raises(KeyboardInterrupt):
        compute(alone, "damaged", 3, stopped)
    (parts,) = (alone / "damaged" / "features").iterdir()
    (parts / "00000001.npz").write_bytes(b"half")
    with pytest.raises(RunError, match=r"00000001\.npz was damaged and is removed now"):
        compute(alone, "damaged")
    assert compute(alone, "damaged") == 1
    assert content(alone, "damaged") == content(alone, "alone")


def weights(config):
    model = build_fused_model(config, vocab_size=build_tokenizer(config.model.text).vocab_size)
    load_weights(checkpoints_of(config).newest().folder, model)
    return model.state_dict()


def losses(config):
    rows = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.parametrize(("precision", "epochs"), [("fp32", 5), ("bf16", 1)])
def test_training_on_kept_features_ends_with_the_weights_of_training_without(tmp_path, precision, epochs):
    folder, settings = shards_of(tmp_path), (f"precision={precision}", f"epochs={epochs}")
    configs = [config_of(folder, f"keep-{keep}", f"keep_features={keep}", *settings) for keep in ("auto", "false")]
    for config in configs:
        run(config)
    with_features, without = map(weights, configs)
    for name, value in without.items():
        torch.testing.assert_close(with_features[name], value, rtol=0, atol=1e-6)
    quarantines = [json_lines(Path(config.run_dir) / "quarantine.jsonl") for config in configs]
    assert quarantines[0] == quarantines[1] != []


def json_lines(path):
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in path.read_text().splitlines()]


def on_rank_train(folder, name, overrides):
    return run(config_of(Path(folder), name, *overrides)).word


def test_a_run_goes_on_on_two_sharded_ranks_with_features_made_anew(tmp_path):
    """As if the folder of features had been lost: they come from the checkpoint's weights, not from new ones."""
    folder = shards_of(tmp_path)
    run(config_of(folder, "source", "epochs=1", "seed=9"))
    settings = ["epochs=3", f"encoder.from={folder / 'source'}"]
    part = config_of(folder, "part", *settings, "checkpoint.every_steps=4", "checkpoint.keep_last=9")
    run(part)
    expected = losses(part)
    for checkpoint in checkpoints_of(part).checkpoints():
        if checkpoint.step > 4:
            checkpoint.folder.remove()
    shutil.rmtree(folder / "part" / "features")
    assert run_ranks(on_rank_train, 2, str(folder), "part", [*settings, "parallel.type=fsdp2"]) == ["complete"] * 2
    mine = losses(part)
    assert mine.keys() == expected.keys()
    assert max(abs(mine[step] - expected[step]) for step in expected) < 1e-5


def test_a_stop_ends_the_pass_and_the_next_start_goes_on(tmp_path):
    folder = shards_of(tmp_path)
    stopped_run = config_of(folder, "run", "max_minutes=0.0001")
    assert run(stopped_run) is Status.AGAIN
    status = json.loads((folder / "run" / "status.json").read_text())
    assert (status["status"], status["step"], status["reason"]) == ("again", 0, "max_minutes=0.0001")
    assert not checkpoints_of(stopped_run).checkpoints()
    assert len(list((folder / "run" / "features").glob(".train-*.parts/*.npz"))) == 1
    assert run(config_of(folder, "run")) is Status.COMPLETE
