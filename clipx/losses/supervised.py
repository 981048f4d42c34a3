"""Losses of supervised targets: sums over the cells that are there, which are those that are not NaN.

Each is a term of an objective: the sum over a micro-batch, which somebody divides by the number of present cells of
the global batch (`num_present`). Absent cells are masked and never indexed, so that shapes do not depend on data and
nothing waits for the device. They are masked before the loss as well as after it: neither their target nor their
prediction reaches a loss or a gradient.

All compute in at least float32 (float64 for float64); there is no operator here that autocast would narrow.

Shape suffixes: B samples, K classes, L labels.
"""

import torch
from torch import Tensor
from torch.nn import functional

_NO_CLASS = -1


def num_present(targets: Tensor) -> Tensor:
    """The number of present cells of targets of any shape: int64, 0-d, on their device."""
    return (~targets.isnan()).sum()


def cross_entropy_sum(logits_BK: Tensor, target_B: Tensor, class_weights_K: Tensor | None = None) -> Tensor:
    """The sum of -c_y log softmax(x)_y over the samples whose class y is known.

    Args:
        logits_BK: floating (B, K).
        target_B: floating (B,), the index of the class, NaN where absent.
        class_weights_K: c, floating (K,); None means 1.

    Returns:
        0-d. It is not divided by the sum of weights: they are meant to have the mean 1 over the training set.
    """
    present_B = ~target_B.isnan()
    class_B = torch.where(present_B, target_B, _NO_CLASS).long()
    logits_BK = torch.where(present_B[:, None], _widened(logits_BK), 0)
    weights_K = None if class_weights_K is None else class_weights_K.to(logits_BK.dtype)
    return functional.cross_entropy(logits_BK, class_B, weight=weights_K, reduction="sum", ignore_index=_NO_CLASS)


def binary_sum(logits_BL: Tensor, targets_BL: Tensor) -> Tensor:
    """The sum of -[y log sigmoid(x) + (1 - y) log sigmoid(-x)] over the present cells.

    Args:
        logits_BL: floating (B, L).
        targets_BL: floating (B, L), y from 0 to 1, NaN where absent.

    Returns:
        0-d.
    """
    present_BL = ~targets_BL.isnan()
    logits_BL = torch.where(present_BL, _widened(logits_BL), 0)
    targets_BL = torch.where(present_BL, targets_BL, 0).to(logits_BL.dtype)
    loss_BL = functional.binary_cross_entropy_with_logits(logits_BL, targets_BL, reduction="none")
    return torch.where(present_BL, loss_BL, 0).sum()


def huber_sum(predicted_B: Tensor, target_B: Tensor) -> Tensor:
    """Huber's loss with the threshold 1, summed over the present cells: e^2 / 2 for |e| <= 1, else |e| - 1/2.

    Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35(1), 1964.

    Args:
        predicted_B: floating (B,).
        target_B: floating (B,), scaled to about the variance 1, NaN where absent.

    Returns:
        0-d.
    """
    present_B = ~target_B.isnan()
    predicted_B = torch.where(present_B, _widened(predicted_B), 0)
    target_B = torch.where(present_B, target_B, 0).to(predicted_B.dtype)
    return functional.huber_loss(predicted_B, target_B, reduction="sum")


def _widened(x: Tensor) -> Tensor:
    """The tensor in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
