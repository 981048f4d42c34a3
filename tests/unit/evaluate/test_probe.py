from collections import Counter
from dataclasses import replace
from statistics import mean, stdev

import numpy as np
import pytest
from labelled_features import clouds, features
from reference.softmax_regression import softmax_regression

from clipx.errors import InputError
from clipx.evaluate import probe
from clipx.evaluate.probe import choose_folds, choose_shots, few_shot_probe, linear_probe

NAMES = [f"thing {i}" for i in range(5)]
LABELS = np.repeat(np.arange(4), [1, 2, 7, 40])[np.random.default_rng(0).permutation(50)]


@pytest.fixture(scope="module")
def parts():
    return clouds(200, spread=1.5, width=8), clouds(120, spread=1.5, width=8, seed=1)


def test_figures_are_those_of_a_textbook_with_the_c_that_was_chosen(parts):
    train, test = parts
    found = linear_probe(train, test, class_names=NAMES, resamples=50)
    weight_KD, bias_K = softmax_regression(
        train.image_ND, train.label_N, num_classes=5, inverse_penalty=found.derived["probe_C"]
    )
    named_N = (test.image_ND @ weight_KD.T + bias_K).argmax(axis=1)
    right_N = named_N == test.label_N
    assert found.metrics["probe_acc1"] == right_N.mean()
    recalls = [right_N[test.label_N == c].mean() for c in range(5)]
    assert found.metrics["probe_mean_per_class_recall"] == pytest.approx(mean(recalls), abs=1e-12)
    assert found.metrics["probe_acc5"] == 1.0
    low, high = found.interval("probe_acc1")
    assert low < right_N.mean() < high


def test_c_is_the_best_of_those_that_cross_validation_tries(parts):
    train, test = parts
    chosen = linear_probe(train, test, class_names=NAMES).derived["probe_C"]
    fold_N = choose_folds(train.label_N)

    def right(inverse_penalty):
        count = 0
        for number in range(5):
            out_N = fold_N == number
            weight_KD, bias_K = softmax_regression(
                train.image_ND[~out_N], train.label_N[~out_N], num_classes=5, inverse_penalty=inverse_penalty
            )
            named_N = (train.image_ND[out_N] @ weight_KD.T + bias_K).argmax(axis=1)
            count += (named_N == train.label_N[out_N]).sum()
        return count

    counts = {exponent: right(10.0**exponent) for exponent in range(-3, 5)}
    # Rough fits may take an image or two otherwise than exact ones.
    assert right(chosen) >= max(counts.values()) - 2
    assert min(counts.values()) < max(counts.values()) - 15


def test_many_images_are_validated_on_one_fold(parts, monkeypatch):
    train, test = parts
    whole = linear_probe(train, test, class_names=NAMES)
    monkeypatch.setattr(probe, "_MANY_IMAGES", 100)
    seen = []
    held_out = probe._Prober._held_out
    monkeypatch.setattr(
        probe._Prober, "_held_out", lambda self, chosen, out: seen.append(out.mean()) or held_out(self, chosen, out)
    )
    found = linear_probe(train, test, class_names=NAMES)
    assert seen == [pytest.approx(0.2, abs=0.02)]
    assert found.metrics["probe_acc1"] == pytest.approx(whole.metrics["probe_acc1"], abs=0.1)


def test_shots_are_means_over_seeds(parts):
    train, test = parts
    found = few_shot_probe(train, test, class_names=NAMES, shots=(1, 8), num_seeds=3)
    whole = linear_probe(train, test, class_names=NAMES)
    runs = []
    for seed in range(3):
        chosen_N = choose_shots(train.label_N, 1, seed=seed)
        few = features(train.image_ND[chosen_N], train.label_N[chosen_N])
        runs.append(linear_probe(few, test, class_names=NAMES).metrics["probe_acc1"])
    assert found.metrics["probe_1_shot_acc1"] == pytest.approx(mean(runs), abs=1e-12)
    assert found.derived["probe_1_shot_acc1_std"] == pytest.approx(stdev(runs), abs=1e-12)
    assert found.metrics["probe_1_shot_acc1"] < found.metrics["probe_8_shot_acc1"] < whole.metrics["probe_acc1"]


def test_one_seed_has_no_deviation(parts):
    found = few_shot_probe(*parts, class_names=NAMES, shots=(1,), num_seeds=1)
    assert list(found.metrics) == ["probe_1_shot_acc1"]
    assert not [name for name in found.derived if name.endswith("_std")]


def test_a_fold_may_hold_out_nothing():
    parts = clouds(40, num_classes=2), clouds(30, num_classes=2, seed=1)
    found = few_shot_probe(*parts, class_names=NAMES[:2], shots=(2,), num_seeds=2)  # four images, five folds
    assert found.metrics["probe_2_shot_acc1"] > 0.5


def test_shots_are_of_every_class_and_contain_fewer_shots():
    few_N, more_N = (choose_shots(LABELS, shots, seed=3) for shots in (1, 2))
    assert Counter(LABELS[few_N]) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert set(few_N) < set(more_N)
    assert list(more_N) == sorted(more_N)
    others = [tuple(choose_shots(LABELS, 1, seed=seed)) for seed in range(8)]
    assert len(set(others)) > 4
    assert all(tuple(choose_shots(LABELS, 1, seed=seed)) == other for seed, other in enumerate(others))


def test_folds_hold_out_every_class_evenly_and_none_entirely():
    fold_N = choose_folds(LABELS)
    assert (fold_N[LABELS == 0] == -1).all(), "the only image of a class always trains"
    assert len(set(fold_N[LABELS == 1])) == 2
    assert sorted(np.bincount(fold_N[LABELS == 2], minlength=5)) == [1, 1, 1, 2, 2]
    assert list(np.bincount(fold_N[LABELS == 3])) == [8] * 5
    pairs_N = choose_folds(np.repeat(np.arange(100), 2))
    assert np.bincount(pairs_N, minlength=5).min() > 20, "small classes are held out in all folds"


def test_a_class_without_images_is_left_out(parts):
    train, test = parts
    names = ["none", *NAMES[:2], "none either", *NAMES[2:]]
    new_C = np.array([1, 2, 4, 5, 6])
    moved = [replace(part, label_N=new_C[part.label_N]) for part in (train, test)]
    assert linear_probe(*moved, class_names=names).metrics == linear_probe(*parts, class_names=NAMES).metrics


@pytest.mark.parametrize(
    ("change", "shots", "message"),
    [
        (
            lambda a, b: (features(a.image_ND, 0 * a.label_N), b),
            (1,),
            "all training images are of one class, 'thing 0'",
        ),
        (
            lambda a, b: (features(a.image_ND, a.label_N % 4), b),
            (1,),
            "test images of thing 4, but no training image",
        ),
        (lambda a, b: (features(a.image_ND[:0], []), b), (1,), "the training part has no image"),
        (lambda a, b: (a, features(b.image_ND[:0], [])), (1,), "the test part has no image"),
        (lambda a, b: (a, replace(b, label_N=None)), (1,), "needs images of one class each"),
        (
            lambda a, b: (features(np.where(np.arange(len(a))[:, None] == 7, np.nan, a.image_ND), a.label_N), b),
            (1,),
            "embedding 7 of the training part is not finite",
        ),
        (lambda a, b: (a, b), (1, 300), "--shots 300: class 'thing"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, change, shots, message):
    train, test = change(*parts)
    with pytest.raises(InputError, match=message) as error:
        few_shot_probe(train, test, class_names=NAMES, shots=shots, num_seeds=1)
    assert "\n" not in str(error.value)
