"""Which parameters decay."""

from typing import Any

from torch import nn


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices and embeddings decay; gains, biases, the class token and the temperature do not.

    The line is drawn by shape, as CLIP did by name (arXiv 2103.00020, section 2.5: "all weights that are not gains or
    biases"): a parameter with at most one dimension longer than 1 is a gain, a bias or a single token.

    Returns:
        Groups for a torch optimizer, in the order of `model.named_parameters()`; only parameters that train.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.squeeze().ndim >= 2]
    others = [parameter for parameter in trained if parameter.squeeze().ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
