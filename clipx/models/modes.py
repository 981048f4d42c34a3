"""Training and evaluation mode of a model of which parts may be in the one and parts in the other."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluates the whole model within the block; afterwards what trained trains again, and what is frozen does not."""
    training = [module for module in model.modules() if module.training]
    if training:  # else nothing to set in each of some hundred modules, which takes as long as a small model
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
