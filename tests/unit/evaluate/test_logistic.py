import numpy as np
import pytest
import torch
from labelled_features import clouds, features
from reference.softmax_regression import softmax_regression

from clipx.evaluate import logistic
from clipx.evaluate.lbfgs import minimize
from clipx.evaluate.logistic import ROUGH, Examples, LogisticRegression


def fit(data, num_classes, inverse_penalty, **options):
    return LogisticRegression(Examples(data.image_ND, data.label_N), num_classes=num_classes).fit(
        inverse_penalty, **options
    )


@pytest.mark.parametrize("inverse_penalty", [1e-6, 1e-2, 1.0, 1e2, 1e5])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_coefficients_equal_a_textbook(num_classes, inverse_penalty):
    data = clouds(150, num_classes=num_classes)
    found = fit(data, num_classes, inverse_penalty)
    weight_KD, bias_K = softmax_regression(
        data.image_ND, data.label_N, num_classes=num_classes, inverse_penalty=inverse_penalty
    )
    assert found.converged
    scale = np.abs(weight_KD).max()
    np.testing.assert_allclose(found.weight_KD.numpy(), weight_KD, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(found.bias_K.numpy(), bias_K, rtol=0, atol=1e-5 * max(1, np.abs(bias_K).max()))


@pytest.mark.parametrize("inverse_penalty", [1e-2, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_coefficients_equal_those_of_scikit_learn(num_classes, inverse_penalty):
    from sklearn.linear_model import LogisticRegression as Theirs

    data = clouds(400, num_classes=num_classes)
    theirs = Theirs(C=inverse_penalty, solver="newton-cg", tol=1e-10, max_iter=10_000)
    theirs.fit(data.image_ND.astype(np.float64), data.label_N)
    found = fit(data, num_classes, inverse_penalty)
    weight_KD, bias_K = found.weight_KD.numpy(), found.bias_K.numpy()
    if num_classes == 2:
        weight_KD, bias_K = weight_KD[1:] - weight_KD[:1], bias_K[1:] - bias_K[:1]
    np.testing.assert_allclose(weight_KD, theirs.coef_, rtol=0, atol=1e-4)
    np.testing.assert_allclose(bias_K, theirs.intercept_, rtol=0, atol=1e-4)


def test_blocks_a_sample_and_rows_in_a_file_give_the_same(tmp_path, monkeypatch):
    data = clouds(500)
    whole = fit(data, 5, 10.0)
    path = tmp_path / "rows"
    data.image_ND.tofile(path)
    mapped_ND = np.memmap(path, np.float32, "r", shape=data.image_ND.shape)
    monkeypatch.setattr(logistic, "_RESIDENT_ENTRIES", 0)
    monkeypatch.setattr(logistic, "_BLOCK_ENTRIES", 1)  # blocks of 64
    monkeypatch.setattr(logistic, "_SAMPLED_ROWS", 40)
    found = LogisticRegression(Examples(mapped_ND, data.label_N), num_classes=5).fit(10.0)
    torch.testing.assert_close(found.weight_KD, whole.weight_KD, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.bias_K, whole.bias_K, rtol=0, atol=1e-6)
    assert found.converged


def test_chosen_rows_are_those_alone():
    data = clouds(200)
    chosen_N = np.arange(1, 200, 3)
    found = LogisticRegression(Examples(data.image_ND, data.label_N, chosen_N=chosen_N), num_classes=5).fit(1.0)
    alone = fit(features(data.image_ND[chosen_N], data.label_N[chosen_N]), 5, 1.0)
    torch.testing.assert_close(found.weight_KD, alone.weight_KD, rtol=0, atol=1e-9)


def test_more_features_than_rows():
    data = clouds(10, num_classes=3, width=40, seed=5)
    found = fit(data, 3, 1e3)
    weight_KD, _ = softmax_regression(data.image_ND, data.label_N, num_classes=3, inverse_penalty=1e3)
    assert found.converged
    np.testing.assert_allclose(found.weight_KD.numpy(), weight_KD, rtol=0, atol=1e-5 * np.abs(weight_KD).max())


def test_a_start_nearby_saves_steps_and_gives_the_same():
    data = clouds(300)
    regression = LogisticRegression(Examples(data.image_ND, data.label_N), num_classes=5)
    cold = regression.fit(10.0)
    warm = regression.fit(10.0, start=regression.fit(9.0))
    torch.testing.assert_close(warm.weight_KD, cold.weight_KD, rtol=0, atol=1e-6)
    assert warm.evaluations < cold.evaluations
    assert regression.fit(10.0, tolerance=ROUGH).evaluations < cold.evaluations


def test_steps_are_few_though_features_differ_in_scale():
    data = clouds(500)  # the smallest of their scales is a fiftieth of the largest: curvatures differ by 2,500
    assert fit(data, 5, 1e2).evaluations < 90


def test_the_search_reaches_slopes_that_values_cannot_show():
    scale_D = torch.logspace(0, 4, 30, dtype=torch.float64)

    def objective(point_D):
        away_D = point_D - 1
        return 1e3 + float((scale_D * away_D.square()).sum() / 2), scale_D * away_D

    found = minimize(objective, torch.zeros(30, dtype=torch.float64), tolerance=1e-10, max_evaluations=1000)
    assert found.converged
    torch.testing.assert_close(found.point, torch.ones(30, dtype=torch.float64), rtol=0, atol=1e-10)


def test_a_search_that_has_used_up_its_evaluations_says_so():
    def objective(point_D):
        return float((point_D**4).sum()), 4 * point_D**3

    found = minimize(objective, torch.full((3,), 5.0, dtype=torch.float64), tolerance=1e-12, max_evaluations=4)
    assert not found.converged
    assert found.evaluations <= 4 + 40
