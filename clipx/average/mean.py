"""The weighted mean of models' tensors, in float64, two sides at a time: as many models as one likes, one by one.

The multiplier of the similarities is averaged as its logarithm, which is the parameter, and the bias of the logits as
it stands: like every other weight.
"""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
NamedTensors = Iterator[tuple[str, Tensor]]
"""Tensors with their names, each computed when it is asked for: not all of them are in memory."""


class RunningMean:
    """The mean of the models that were added; it holds one set of tensors, in float64 from the second model on."""

    def __init__(self) -> None:
        self.total = 0.0
        """The sum of the weights."""
        self.tensors: dict[str, Tensor] = {}
        """The mean: of a single model its own tensors, bit for bit."""

    def add(self, tensors: Tensors, weight: float) -> None:
        """Takes a model in; its tensors must not change any more, as the first ones are kept."""
        for name, tensor in self.mean_with(tensors, weight):
            self.tensors[name] = tensor
        self.total += weight

    def mean_with(self, tensors: Tensors, weight: float) -> NamedTensors:
        """The mean as it would be with another model, which is not taken in."""
        share = 1.0 if self.total == 0 else weight / (self.total + weight)
        return between(self.tensors, tensors, alpha=share)


def between(start: Tensors, end: Tensors, *, alpha: float) -> NamedTensors:
    """(1 - alpha) start + alpha end, in float64; at 0 and at 1 the tensors of `start` and of `end` themselves.

    WiSE-FT, arXiv 2109.01903, equation 1. What is no floating-point tensor (counters of batch norms) has no mean: it is
    that of the nearer side, of `start` in the middle.
    """
    for name in end:
        if alpha in (0, 1) or not end[name].is_floating_point():
            yield name, end[name] if alpha > 0.5 else start[name]
        else:
            yield name, start[name].double().mul(1 - alpha).add_(end[name].double(), alpha=alpha)


def checksum(tensors: Tensors) -> str:
    """SHA-256 of names, dtypes, shapes and bytes: the same whatever files they come from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
