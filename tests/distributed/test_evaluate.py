"""Evaluations are the same for every number of ranks, and every rank makes the same number of forward passes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from shard_files import write_tar
from tiny_clip import (
    encoded,
    picture,
    tiny_model_config,
    tiny_pretrained,
    write_classification_set,
    write_retrieval_set,
)

from clipx.config.data import DataConfig
from clipx.config.evaluate import HeldOutLossConfig
from clipx.config.loss import InfoNCEConfig, SigmoidConfig
from clipx.config.schema import RunConfig
from clipx.data.labelled import open_set
from clipx.data.suite_sets import places_of
from clipx.errors import InputError
from clipx.evaluate import evaluate_folder
from clipx.evaluate.features import features_of
from clipx.evaluate.options import EvaluateOptions
from clipx.evaluate.run import evaluate_config, evaluate_set
from clipx.evaluate.sharing import share
from clipx.evaluate.suite import present_places

NAMES = ["thing 0", "thing 1", "thing 2", "thing 3", "Thing 1"]  # the last and the second have equal prompts
TEMPLATES = ["a photo of a {c}.", "{c}"]


def figures_and_calls(folders, batch_size):
    """On one rank: the figures of each folder, and how often each tower ran."""
    pretrained = tiny_pretrained()
    calls = {"encode_image": 0, "encode_text": 0}

    def counted(name):
        method = getattr(pretrained, name)

        def call(inputs):
            calls[name] += 1
            return method(inputs)

        setattr(pretrained, name, call)

    counted("encode_image")
    counted("encode_text")
    group = dist.group.WORLD if dist.is_initialized() else None
    figures = [evaluate_folder(pretrained, Path(folder), batch_size=batch_size, group=group) for folder in folders]
    return figures, calls


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    labels = [i * i % 5 for i in range(17)]
    classification = write_classification_set(root / "c", labels, class_names=NAMES, templates=TEMPLATES)
    captions = [[f"picture {i}"] + (["twice", f"more {i}"] if i % 4 == 0 else []) for i in range(17)]
    multi = write_classification_set(root / "m", labels, class_names=NAMES, templates=TEMPLATES)
    (multi / "dataset_type.txt").write_text("multilabel")
    return [str(classification), str(write_retrieval_set(root / "r", captions)), str(multi)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_figures_and_forward_passes_are_equal_on_all_ranks(folders, world_size):
    alone, _ = figures_and_calls(folders, 4)
    results = run_ranks(figures_and_calls, world_size, folders, 4)
    for figures, calls in results:
        assert figures == alone
        assert calls == results[0][1]


def _evaluated(folders, cache):
    """On one rank: the bits of the embeddings, all figures with their intervals, and the pictures it embedded."""
    pretrained = tiny_pretrained()
    embedded = []
    encode = pretrained.encode_image

    def counted(images):
        embedded.append(len(images))
        return encode(images)

    pretrained.encode_image = counted
    group = dist.group.WORLD if dist.is_initialized() else None
    options = EvaluateOptions(batch_size=4, cache=None if cache is None else Path(cache), resamples=300)
    bits, figures = [], []
    for folder in folders:
        data = open_set(folder)
        features = features_of(pretrained, data, options, group=group)
        bits.append(np.array(features.image_ND).tobytes())
        evaluation = evaluate_set(pretrained, data, options, group)
        intervals = {name: evaluation.interval(name) for name in evaluation.resampled}
        figures.append((evaluation.metrics, evaluation.derived, intervals))
    return bits, figures, sum(embedded)


@pytest.mark.parametrize(("world_size", "kept"), [(2, True), (3, False)])
def test_bits_and_intervals_do_not_depend_on_the_number_of_ranks(folders, tmp_path, world_size, kept):
    alone_bits, alone, _ = _evaluated(folders, None)
    for bits, figures, _ in run_ranks(_evaluated, world_size, folders, str(tmp_path) if kept else None):
        assert bits == alone_bits
        assert figures == alone
    if kept:
        found = _evaluated(folders, str(tmp_path))
        assert found == (alone_bits, alone, 0), "one process does not find what ranks have kept"
        assert len(list(tmp_path.iterdir())) == len(folders) + 1


def _with_own_cache(folders, caches):
    return _evaluated(folders, caches[dist.get_rank()])


def test_a_rank_without_the_kept_features_has_all_compute_them(folders, tmp_path):
    caches = [str(tmp_path / "one"), str(tmp_path / "two")]
    expected, _, _ = _evaluated(folders, caches[0])
    (bits, _, embedded), (other_bits, _, other_embedded) = run_ranks(_with_own_cache, 2, folders, caches)
    assert bits == other_bits == expected
    assert embedded > 0 < other_embedded


def _skipped(folders, lost):
    if dist.get_rank() == 1:
        shutil.rmtree(lost)  # as if it lay on the other machine's disk
    dist.barrier()
    present, missing = present_places(places_of(folders), skip_missing=True, group=dist.group.WORLD)
    return [place.key for place in present], list(missing)


def test_a_set_that_is_missing_is_left_out_on_all_ranks(folders, tmp_path):
    lost = str(shutil.copytree(folders[0], tmp_path / "lost"))
    assert run_ranks(_skipped, 2, [lost, folders[1]], lost) == [([folders[1]], [lost])] * 2


def test_more_ranks_than_pictures(folders, tmp_path):
    folder = write_classification_set(tmp_path, [0, 1, 1], class_names=NAMES, templates=TEMPLATES)
    alone, _ = figures_and_calls([str(folder)], 4)
    results = run_ranks(figures_and_calls, 4, [str(folder)], 4)
    assert [figures for figures, _ in results] == [alone] * 4


def test_a_bad_picture_on_one_rank_ends_all_of_them(tmp_path):
    folder = write_classification_set(tmp_path, [0, 1], class_names=NAMES)
    members = [("x.png", encoded(picture(0))), ("x.cls", b"0"), ("y.png", b"none"), ("y.cls", b"0")]
    write_tar(folder / "test" / "1.tar", members)
    messages = run_ranks(_message, 2, str(folder))
    assert messages[0] == messages[1]
    assert "sample y of" in messages[0]


def _message(folder):
    try:
        evaluate_folder(tiny_pretrained(), Path(folder), batch_size=1, group=dist.group.WORLD)
    except InputError as error:
        return str(error)
    return "no error"


def _message_of_own_folder(folders):
    message = _message(folders[dist.get_rank()])
    in_step = torch.ones(1)  # ranks that had parted would not meet here
    dist.all_reduce(in_step)
    return message, in_step.item()


@pytest.mark.parametrize("damage", ["no folder", "half a shard"])
def test_what_one_rank_cannot_read_ends_all_of_them(tmp_path, damage):
    folders = [tmp_path / "seen by rank 0", tmp_path / "seen by rank 1"]
    write_retrieval_set(folders[0], [["a"], ["b"], ["c"]])
    if damage == "half a shard":
        write_retrieval_set(folders[1], [["a"], ["b"], ["c"]])
        shard = sorted((folders[1] / "test").glob("*.tar"))[-1]
        shard.write_bytes(shard.read_bytes()[:700])
    (one, _), (other, _) = found = run_ranks(_message_of_own_folder, 2, list(map(str, folders)), timeout_s=30)
    assert one == other != "no error"
    assert str(folders[1]) in one
    assert [in_step for _, in_step in found] == [2.0, 2.0]


def _shares(num_items, batch_size):
    return list(share(range(num_items), batch_size=batch_size, group=dist.group.WORLD))


def test_every_block_of_items_goes_to_one_rank():
    for num_items in (0, 1, 5, 6, 7, 13):
        shares = run_ranks(_shares, 2, num_items, 3) if num_items in (7, 13) else [list(_alone(num_items))]
        blocks = {}
        for rounds in shares:
            assert [block.count for block in rounds] == [block.count for block in shares[0]]
            blocks |= {block.start: block.local for block in rounds if block.local}
        assert blocks == {start: list(range(start, min(start + 3, num_items))) for start in range(0, num_items, 3)}
        assert sum(block.count for block in shares[0]) == num_items


def _alone(num_items):
    return share(range(num_items), batch_size=3, group=None)


def _held_out_loss(folder, loss, size):
    """On one rank: the loss, what the note says, and how often each tower ran."""
    config = replace(tiny_model_config(), init_logit_bias=-5.0)
    pretrained = tiny_pretrained(config)
    calls = {"image": 0, "text": 0}
    pretrained.model.image_tower.register_forward_pre_hook(lambda *_: calls.update(image=calls["image"] + 1))
    pretrained.model.text_tower.register_forward_pre_hook(lambda *_: calls.update(text=calls["text"] + 1))
    data = DataConfig(train=["none.tar"], equal_captions="ignored")
    run = RunConfig(run_dir="none", steps=1, global_batch_size=size, data=data, model=config, loss=loss)
    group = dist.group.WORLD if dist.is_initialized() else None
    found = evaluate_config(HeldOutLossConfig(data=folder, batch_size=4), pretrained, group, run=run)
    return found.metrics["loss"], found.note, calls


@pytest.mark.parametrize(
    ("loss", "world_size", "size"),
    [
        pytest.param(InfoNCEConfig(), 2, 6, id="info_nce"),
        pytest.param(SigmoidConfig(), 3, 6, id="sigmoid"),
        pytest.param(InfoNCEConfig(exchange="ring", tile_size=2), 2, 5, id="ring, no multiple of the ranks"),
        pytest.param(InfoNCEConfig(), 2, 1000, id="fewer than a batch"),
        *(
            pytest.param(loss, world_size, size, marks=pytest.mark.full)
            for loss in (InfoNCEConfig(tile_size=2), SigmoidConfig(exchange="ring"))
            for world_size, size in ((2, 6), (3, 6), (2, 5), (2, 1000))
        ),
    ],
)
def test_the_held_out_loss_does_not_depend_on_the_number_of_ranks(folders, loss, world_size, size):
    alone, note, _ = _held_out_loss(folders[1], loss, size)
    assert alone > 0.1
    for value, said, calls in (results := run_ranks(_held_out_loss, world_size, folders[1], loss, size)):
        assert value == pytest.approx(alone, abs=1e-12)
        assert said == note
        assert calls == results[0][2]
