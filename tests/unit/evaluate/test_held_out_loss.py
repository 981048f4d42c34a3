"""The loss of held-out pairs equals the textbook's over all of its batches, whatever a forward pass holds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.info_nce import info_nce
from reference.sigmoid import sigmoid
from shard_files import write_tar
from tiny_clip import (
    encoded,
    picture,
    tiny_model_config,
    tiny_pretrained,
    write_classification_set,
    write_retrieval_set,
)

from clipx.config.data import DataConfig, SourceConfig
from clipx.config.evaluate import HeldOutLossConfig, RetrievalConfig, ZeroShotConfig
from clipx.config.evaluate_metrics import figures_of
from clipx.config.loss import InfoNCEConfig, SigmoidConfig
from clipx.config.schema import RunConfig
from clipx.errors import InputError
from clipx.evaluate import check_evaluation, run_evaluation
from clipx.evaluate.held_out_loss import batches_of
from clipx.evaluate.run import evaluate_config

CAPTIONS = [[f"picture {i}" if i % 3 else "the same", "a second one"] for i in range(21)]


def run_config(*, loss=None, size=8, **data):
    """A run with tiny_pretrained's model; with a bias, as the sigmoid loss wants it."""
    model = tiny_model_config()
    if isinstance(loss, SigmoidConfig):
        model = biased().config
    return RunConfig(
        run_dir="runs/none",
        steps=1,
        global_batch_size=size,
        data=DataConfig(**({"train": ["none.tar"]} | data)),
        model=model,
        loss=loss or InfoNCEConfig(),
    )


def biased():
    return tiny_pretrained(replace(tiny_model_config(), init_logit_bias=-5.0))


def textbook(pretrained, loss, *, size, groups=None):
    """The mean over batches of the whole G x G matrix in float64."""
    images = pretrained.encode_image([picture(i) for i in range(len(CAPTIONS))])
    texts = pretrained.encode_text([captions[0] for captions in CAPTIONS])
    scale = pretrained.model.log_logit_scale.detach().double().exp()
    values = []
    for index in map(torch.from_numpy, batches_of(len(CAPTIONS), size)):
        ids = None if groups is None else torch.tensor(groups)[index]
        bias = () if loss is info_nce else (pretrained.model.logit_bias.detach(),)
        values.append(float(loss(images[index], texts[index], scale, *bias, ids_G=ids)))
    return np.mean(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_retrieval_set(tmp_path_factory.mktemp("held") / "out", CAPTIONS)


@pytest.mark.parametrize("chunk", [3, 64])
@pytest.mark.parametrize(("size", "tile"), [(8, 2048), (8, 3), (2, 2048), (100, 2048)])
def test_it_is_the_textbooks_over_the_whole_set_of_batches(folder, size, tile, chunk):
    pretrained = tiny_pretrained()
    config = HeldOutLossConfig(data=str(folder), batch_size=chunk)
    run = run_config(loss=InfoNCEConfig(tile_size=tile), size=size)
    figures = run_evaluation(config, pretrained, None, run=run)
    assert figures == {"loss": pytest.approx(textbook(pretrained, info_nce, size=size), abs=1e-6)}


def test_it_is_the_loss_of_the_run(folder):
    pretrained = biased()
    figures = run_evaluation(
        HeldOutLossConfig(data=str(folder)), pretrained, None, run=run_config(loss=SigmoidConfig())
    )
    assert figures == {"loss": pytest.approx(textbook(pretrained, sigmoid, size=8), abs=1e-6)}


@pytest.mark.parametrize(
    "data",
    [
        {"equal_captions": "ignored"},
        {"train": None, "sources": {"a": SourceConfig(shards=["a"], equal_captions="ignored")}},
    ],
)
def test_equal_captions_are_no_negatives_where_they_are_none_in_training(folder, data):
    pretrained = tiny_pretrained()
    groups = [-1 - i if i % 3 else 0 for i in range(len(CAPTIONS))]
    expected = textbook(pretrained, info_nce, size=8, groups=groups)
    assert abs(expected - textbook(pretrained, info_nce, size=8)) > 1e-3, "the set has no equal captions in a batch"
    config = HeldOutLossConfig(data=str(folder))
    assert run_evaluation(config, pretrained, None, run=run_config(**data))["loss"] == pytest.approx(expected, abs=1e-6)


def test_autocast_rounds_nothing_but_embeddings(folder):
    pretrained = tiny_pretrained()
    config, run = HeldOutLossConfig(data=str(folder)), run_config()
    plain = run_evaluation(config, pretrained, None, run=run)["loss"]
    pretrained.encode_image, pretrained.encode_text = (
        torch.autocast("cpu", enabled=False)(call) for call in (pretrained.encode_image, pretrained.encode_text)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run_evaluation(config, pretrained, None, run=run)["loss"] == plain


def test_batches_are_of_one_size_and_mix_the_set():
    batches = list(batches_of(21, 8))
    assert [len(index) for index in batches] == [8, 8]
    assert len(np.unique(np.concatenate(batches))) == 16
    assert list(map(int, batches[0])) == FIRST, "runs that were evaluated before could not be compared"
    assert [sorted(index) for index in batches_of(5, 8)] == [[0, 1, 2, 3, 4]]
    assert [len(index) for index in batches_of(16, 8)] == [8, 8]


FIRST = [20, 11, 0, 8, 13, 14, 6, 7]


@pytest.mark.parametrize(
    ("size", "note"),
    [
        (8, "2 batches of 8 pairs, 5 of 21 pairs left out"),
        (7, "3 batches of 7 pairs"),
        (20, "1 batch of 20 pairs, 1 of 21 pairs left out"),
        (21, "1 batch of 21 pairs"),
        (64, "one batch of 21 pairs, fewer than the 64 of a whole one"),
    ],
)
def test_the_note_counts_batches_and_what_is_left_out(folder, size, note):
    pretrained = tiny_pretrained()
    found = evaluate_config(HeldOutLossConfig(data=str(folder)), pretrained, None, run=run_config(size=size))
    assert found.note == note
    own = evaluate_config(HeldOutLossConfig(data=str(folder), pairs=size), pretrained, None, run=run_config(size=9))
    assert (own.note, own.metrics) == (note, found.metrics)


def test_a_batch_has_as_many_pictures_as_in_training(folder):
    run = run_config(size=16, captions_per_image=2)
    found = evaluate_config(HeldOutLossConfig(data=str(folder)), tiny_pretrained(), None, run=run)
    assert found.note == "2 batches of 8 pairs, 5 of 21 pairs left out"


def test_shards_and_another_split_are_read(folder, tmp_path):
    pretrained, run = tiny_pretrained(), run_config()
    expected = run_evaluation(HeldOutLossConfig(data=str(folder)), pretrained, None, run=run)
    assert run_evaluation(HeldOutLossConfig(data=str(folder / "test" / "0.tar")), pretrained, None, run=run) == expected
    moved = tmp_path / "set"
    folder_of_val = write_retrieval_set(moved, CAPTIONS)
    (folder_of_val / "test").rename(folder_of_val / "val")
    assert run_evaluation(HeldOutLossConfig(data=str(moved), split="val"), pretrained, None, run=run) == expected


def test_what_has_no_loss_is_said(folder, tmp_path):
    pretrained, run = tiny_pretrained(), run_config()
    config = HeldOutLossConfig(data=str(folder))
    check_evaluation(config)
    with pytest.raises(InputError, match="an evaluation of type loss computes the loss of a run"):
        run_evaluation(config, pretrained, None)
    write_tar(tmp_path / "0.tar", [("a.png", encoded(picture(0)))])
    with pytest.raises(InputError, match=r"sample a of .*: no caption under 'txt'; members: png"):
        check_evaluation(HeldOutLossConfig(data=str(tmp_path)))
    alone = tmp_path / "alone"
    write_tar(alone / "0.tar", [("a.png", encoded(picture(0))), ("a.txt", b"one")])
    with pytest.raises(
        InputError, match="the set has 1 pair: a contrastive loss compares at least 2; name more shards"
    ):
        run_evaluation(HeldOutLossConfig(data=str(alone)), pretrained, None, run=run)
    with pytest.raises(InputError, match=r"has no parts, so no split 'val'; name the shards of that part"):
        check_evaluation(HeldOutLossConfig(data=str(alone), split="val"))
    with pytest.raises(InputError, match=r"has no split 'vla': it has test; name one of them"):
        check_evaluation(HeldOutLossConfig(data=str(folder), split="vla"))


def test_every_figure_is_there_under_its_name(folder, tmp_path):
    labelled = write_classification_set(tmp_path, [0, 1, 1, 0], class_names=["a", "b"])
    configs = [
        HeldOutLossConfig(data=str(folder)),
        RetrievalConfig(data=str(folder)),
        ZeroShotConfig(data=str(labelled)),
    ]
    for config in configs:
        figures = run_evaluation(config, tiny_pretrained(), None, run=run_config())
        assert set(figures) == set(figures_of(config))
