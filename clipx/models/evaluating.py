"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turns training mode off within the block, and then on again where it was: not in a tower that is locked."""
    training = [module for module in model.modules() if module.training]
    if training:  # else nothing to set in each of some hundred modules, which takes as long as a small model
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
