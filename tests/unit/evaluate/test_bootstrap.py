"""Resamples of counts are distributed like those of images, and intervals cover what they should."""

import numpy as np
import pytest
from tiny_clip import tiny_pretrained, write_classification_set, write_retrieval_set

from clipx.data.labelled import open_set
from clipx.evaluate import bootstrap, retrieval
from clipx.evaluate.bootstrap import image_weights, outcome_counts
from clipx.evaluate.options import EvaluateOptions
from clipx.evaluate.run import evaluate_set

COUNTS = np.array([50, 0, 30, 20])


def drawn(pieces):
    return np.concatenate(list(pieces))


def test_counts_are_distributed_like_images_that_are_drawn_one_by_one():
    images = np.repeat(np.arange(4), COUNTS)
    generator = np.random.default_rng(1)
    one_by_one = np.stack([np.bincount(generator.choice(images, 100), minlength=4) for _ in range(4000)])
    counts = drawn(outcome_counts(COUNTS, resamples=4000))
    assert (counts.sum(axis=1) == 100).all()
    assert np.abs(counts.mean(axis=0) - one_by_one.mean(axis=0)).max() < 0.5  # deviations of the means: below 0.11
    assert np.abs(np.cov(counts.T) - np.cov(one_by_one.T)).max() < 2.5


def test_weights_are_distributed_like_counts():
    weights = drawn(image_weights(100, resamples=2000))
    assert (weights.sum(axis=1) == 100).all()
    grouped = np.stack([weights[:, :50].sum(axis=1), weights[:, 50:80].sum(axis=1), weights[:, 80:].sum(axis=1)])
    counts = drawn(outcome_counts(COUNTS, resamples=2000))[:, [0, 2, 3]].T
    assert np.abs(grouped.mean(axis=1) - counts.mean(axis=1)).max() < 0.7
    assert np.abs(np.cov(grouped) - np.cov(counts)).max() < 3.5


def test_resamples_are_the_same_every_time_and_differ_from_each_other(monkeypatch):
    first = drawn(outcome_counts(COUNTS, resamples=50))
    assert (drawn(outcome_counts(COUNTS, resamples=50)) == first).all()
    monkeypatch.setattr(bootstrap, "_NUMBERS", 4 * 10)
    pieces = list(outcome_counts(COUNTS, resamples=25))
    assert [len(piece) for piece in pieces] == [10, 10, 5]
    assert len(np.unique(np.concatenate(pieces), axis=0)) > 20


def test_the_interval_of_an_accuracy_is_that_of_its_binomial_distribution():
    hits = drawn(outcome_counts(np.array([300, 700]), resamples=1000))[:, 0] / 1000
    low, high = np.quantile(hits, [0.025, 0.975])
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.004)


def test_every_figure_of_a_classification_has_an_interval_around_it(tmp_path):
    names = [f"thing {i}" for i in range(7)]
    folder = write_classification_set(tmp_path, [i * i % 7 for i in range(40)], class_names=names)
    data = open_set(str(folder))
    evaluation = evaluate_set(tiny_pretrained(), data, EvaluateOptions(resamples=1000), None)
    for name, figure in evaluation.metrics.items():
        low, high = evaluation.interval(name)
        assert 0 <= low <= figure <= high <= 1
        assert (low < high) == (0 < figure < 1)
    assert any(0 < figure < 1 for figure in evaluation.metrics.values())
    assert evaluate_set(tiny_pretrained(), data, EvaluateOptions(), None).interval("acc1") is None


def test_captions_are_resampled_with_their_images(tmp_path):
    """Of twins of a picture's captions the interval is as wide as without, not narrower by the square root of two."""
    alone = [[f"picture {i}"] for i in range(30)]
    twins = [[*lines, f"{lines[0]}!"] for lines in alone]
    width = {}
    for name, captions in (("alone", alone), ("twins", twins)):
        data = open_set(str(write_retrieval_set(tmp_path / name, captions)))
        evaluation = evaluate_set(tiny_pretrained(), data, EvaluateOptions(resamples=1000), None)
        assert evaluation.resampled.keys() == evaluation.metrics.keys() | evaluation.derived.keys()
        figure = evaluation.metrics["text_to_image_recall@10"]
        low, high = evaluation.interval("text_to_image_recall@10")
        assert low < figure < high
        width[name] = (high - low) / np.sqrt(figure * (1 - figure))
    assert width["twins"] > 0.8 * width["alone"]


def test_images_with_more_captions_weigh_as_many_in_each_resample():
    """Where few captions are hits and many are not, drawing image by image gives the same spread."""
    captions = np.repeat([1, 9], [30, 10])
    owner = np.repeat(np.arange(40), captions)
    wrong = np.where(captions[owner] == 1, 0, 20)
    found = retrieval._resampled(retrieval._outcomes(np.zeros(40, int), wrong, owner), resamples=3000)
    draw = np.random.default_rng(2).integers(40, size=(3000, 40))
    expected = (captions[draw] == 1).sum(axis=1) / captions[draw].sum(axis=1)
    values = found["text_to_image_recall@1"]
    assert values.mean() == pytest.approx(expected.mean(), abs=0.01)
    assert values.std() == pytest.approx(expected.std(), rel=0.1)
    assert (found["image_to_text_recall@1"] == 1).all()
