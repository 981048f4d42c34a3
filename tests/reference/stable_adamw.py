"""StableAdamW by the textbook: algorithm 2 of arXiv 2304.13013 for one tensor, line by line, in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor


def stable_adamw(
    weights: Tensor,
    gradients: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Tensor:
    """The weights after one step per gradient; the recursion keeps debiased moments."""
    weights = weights.double()
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    beta1, beta2 = betas
    for step, gradient in enumerate((each.double() for each in gradients), 1):
        corrected1 = beta1 * (1 - beta1 ** (step - 1)) / (1 - beta1**step)
        corrected2 = beta2 * (1 - beta2 ** (step - 1)) / (1 - beta2**step)
        first = corrected1 * first + (1 - corrected1) * gradient
        second = corrected2 * second + (1 - corrected2) * gradient**2
        rms = (gradient**2 / second.clamp(min=eps**2)).mean().sqrt()
        eta = lr / max(1.0, float(rms))
        weights = weights - eta * weight_decay * weights - eta * first / (second.sqrt() + eps)
    return weights
