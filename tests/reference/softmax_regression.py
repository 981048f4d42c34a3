"""Logistic regression by Newton's method on the whole Hessian: small sizes, float64."""

import numpy as np


def softmax_regression(
    x_ND: np.ndarray, label_N: np.ndarray, *, num_classes: int, inverse_penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """W (K, D) and b (K,), with sum 0, that minimise C sum_i -log softmax(W x_i + b)[y_i] + |W|^2 / 2.

    Of two classes |W|^2 counts twice, as in scikit-learn, which has W[1] - W[0] only.
    """
    num_rows, width = x_ND.shape
    x_NE = np.concatenate([x_ND.astype(np.float64), np.ones((num_rows, 1))], axis=1)
    penalty_E = np.array([1.0] * width + [0.0]) * (2 if num_classes == 2 else 1) / inverse_penalty
    point_KE = np.zeros((num_classes, width + 1))
    one_hot_NK = np.eye(num_classes)[label_N]

    def value(point_KE):
        score_NK = x_NE @ point_KE.T
        top_N1 = score_NK.max(axis=1, keepdims=True)
        log_sum_N = np.log(np.exp(score_NK - top_N1).sum(axis=1)) + top_N1[:, 0]
        return (log_sum_N - (score_NK * one_hot_NK).sum(axis=1)).sum() + (penalty_E * point_KE**2).sum() / 2

    for _ in range(200):
        score_NK = x_NE @ point_KE.T
        p_NK = np.exp(score_NK - score_NK.max(axis=1, keepdims=True))
        p_NK /= p_NK.sum(axis=1, keepdims=True)
        gradient_KE = (p_NK - one_hot_NK).T @ x_NE + penalty_E * point_KE
        curve_NKK = p_NK[:, :, None] * (np.eye(num_classes) - p_NK[:, None, :])
        hessian = np.einsum("nkl,nd,ne->kdle", curve_NKK, x_NE, x_NE).reshape(point_KE.size, -1)
        hessian += np.diag(np.tile(penalty_E, num_classes))
        step_KE = np.linalg.lstsq(hessian, gradient_KE.ravel(), rcond=1e-14)[0].reshape(point_KE.shape)
        scale = 1.0
        while value(point_KE - scale * step_KE) > value(point_KE) and scale > 1e-6:
            scale /= 2
        point_KE = point_KE - scale * step_KE
        if np.abs(step_KE).max() < 1e-11:
            break
    return point_KE[:, :-1], point_KE[:, -1] - point_KE[:, -1].mean()
