"""Mean average precision by its definition: thresholds one by one, scikit-learn's, and CLIP_benchmark's."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import write_tar
from sklearn.metrics import average_precision_score
from tiny_clip import encoded, picture, tiny_pretrained, write_classification_set

from clipx.data.labelled import open_set
from clipx.evaluate import evaluate_folder, multi_label
from clipx.evaluate.multi_label import NAME, Ranking
from clipx.evaluate.options import EvaluateOptions
from clipx.evaluate.run import evaluate_set

NAMES = ["red thing", "blue thing", "round thing", "nothing that is shown"]
NUM_PICTURES = 23


def textbook(scores, shown):
    """The sum over thresholds, from the highest, of the growth of recall times the precision there."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        found = scores >= threshold
        recall = (shown & found).sum() / shown.sum()
        total += (recall - before) * (shown & found).sum() / found.sum()
        before = recall
    return total


def clip_benchmark(scores, shown):
    """The mean, over the images that show it, of the precision down to each; in the order of equal scores."""
    ordered = shown[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
    return precision[ordered].sum() / max(1, shown.sum())


@settings(max_examples=100)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31))
def test_average_precision_is_scikit_learn_s_and_clip_benchmark_s(num_images, num_scores, seed):
    draw = np.random.default_rng(seed)
    scores = draw.integers(num_scores, size=num_images).astype(np.float32)
    shown = draw.random(num_images) < 0.4
    shown[draw.integers(num_images)] = True
    once = np.ones((1, num_images), np.int64)
    (found,) = Ranking(scores, shown).average_precision(once)
    assert found == pytest.approx(average_precision_score(shown, scores), abs=1e-12)
    assert found == pytest.approx(textbook(scores, shown), abs=1e-12)
    (by_order,) = Ranking(scores, shown, by_order=True).average_precision(once)
    assert by_order == pytest.approx(clip_benchmark(scores, shown), abs=1e-12)


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(0, 2**31))
def test_a_weight_is_as_many_copies_of_the_image(num_images, seed):
    draw = np.random.default_rng(seed)
    scores, shown = draw.integers(9, size=num_images).astype(np.float32), draw.random(num_images) < 0.5
    weights = draw.integers(3, size=(4, num_images))
    found = Ranking(scores, shown).average_precision(weights)
    for value, weight in zip(found, weights, strict=True):
        copies = np.repeat(np.arange(num_images), weight)
        if shown[copies].any():
            assert value == pytest.approx(average_precision_score(shown[copies], scores[copies]), abs=1e-12)
        else:
            assert np.isnan(value)


def test_nan_counts_against_the_model():
    once = np.ones((1, 4), np.int64)
    scores = np.array([np.nan, 0.2, np.nan, 0.1], np.float32)
    shown = np.array([True, True, False, False])
    assert Ranking(scores, shown).average_precision(once) == [(1 / 2 + 2 / 4) / 2]


@pytest.fixture(scope="module")
def shown():
    shown = np.random.default_rng(0).random((NUM_PICTURES, len(NAMES))) < 0.4
    shown[:, 3] = False
    shown[5] = False
    return shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shown):
    folder = write_classification_set(
        tmp_path_factory.mktemp("multi"), [], class_names=NAMES, templates=["a {c}", "{c}"]
    )
    members = []
    for i, row in enumerate(shown):
        vector = io.BytesIO()
        np.save(vector, row.astype(np.float32))
        members += [(f"s{i:04d}.npy", vector.getvalue()), (f"s{i:04d}.png", encoded(picture(i)))]
    (folder / "test" / "1.tar").unlink()
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "dataset_type.txt").write_text("multilabel")
    return folder


@pytest.mark.parametrize("scores_at_once", [2**25, 2 * NUM_PICTURES])
def test_figures_are_those_of_a_textbook(folder, shown, monkeypatch, scores_at_once):
    monkeypatch.setattr(multi_label, "_SCORES", scores_at_once)  # all classes, or two
    pretrained = tiny_pretrained()
    classes = []
    for name in NAMES:
        mean = np.mean([pretrained.encode_text(text)[0].double().numpy() for text in (f"a {name}", name)], axis=0)
        classes.append(mean / np.linalg.norm(mean))
    images = pretrained.encode_image([picture(i) for i in range(NUM_PICTURES)]).double().numpy()
    scores = images @ np.array(classes).T
    precisions = [textbook(scores[:, c], shown[:, c]) for c in range(3)]
    assert evaluate_folder(pretrained, folder, batch_size=8, group=None) == {NAME: pytest.approx(np.mean(precisions))}
    like = evaluate_folder(pretrained, folder, batch_size=8, group=None, like="clip_benchmark")
    assert like == {NAME: pytest.approx(np.mean([*precisions, 0]))}, "a class that no image shows counts there"


def test_resamples_surround_the_figure_and_are_left_out_where_they_would_take_long(folder, monkeypatch):
    pretrained, data = tiny_pretrained(), open_set(str(folder))
    evaluation = evaluate_set(pretrained, data, EvaluateOptions(resamples=300), None)
    low, high = evaluation.interval(NAME)
    assert low < evaluation.metrics[NAME] < high + 0.1  # what is resampled has copies, which rank alike: it is higher
    assert len(evaluation.resampled[NAME]) == 300
    monkeypatch.setattr(multi_label, "_RESAMPLED", 199 * NUM_PICTURES * len(NAMES))
    assert evaluate_set(pretrained, data, EvaluateOptions(resamples=300), None).interval(NAME) is None
