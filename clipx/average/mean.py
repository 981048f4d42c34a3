"""The weighted mean of models' tensors, in float64, two sides at a time: as many models as one likes, one by one.

The multiplier of the similarities is averaged as its logarithm, which is the parameter, and the bias of the logits as
it stands: like every other weight.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

Tensors = Mapping[str, Tensor]
NamedTensors = Iterator[tuple[str, Tensor]]
"""Tensors with their names, each computed when it is asked for: not all of them are in memory."""


class RunningMean:
    """The mean of the models that were added: sums in float64, divided by the sum of the weights.

    It holds one set of tensors, whatever the number of models. What is no floating-point tensor (counters of batch
    norms) has no mean: it is that of the first model, or of one that weighs more than all before it.
    """

    def __init__(self) -> None:
        self.total = 0.0
        """The sum of the weights."""
        self._tensors: dict[str, Tensor] = {}
        self._is_sum = False  # otherwise they are the tensors of a single model

    def add(self, tensors: Tensors, weight: float) -> None:
        """Takes a model in; its tensors must not change any more, as the first ones are kept."""
        if self.total == 0:
            self._tensors = dict(tensors)
        elif weight != 0:
            for name, tensor in tensors.items():
                self._tensors[name] = self._sum_with(name, tensor, weight)
            self._is_sum = True
        self.total += weight

    def mean(self) -> NamedTensors:
        """The mean in float64; of a single model its own tensors, bit for bit."""
        for name, tensor in self._tensors.items():
            yield name, tensor / self.total if self._is_sum and tensor.is_floating_point() else tensor

    def mean_with(self, tensors: Tensors, weight: float) -> NamedTensors:
        """The mean as it would be with another model, of a weight above 0, which is not taken in."""
        for name, tensor in tensors.items():
            if self.total == 0:
                yield name, tensor
            else:
                total = self._sum_with(name, tensor, weight)
                yield name, total / (self.total + weight) if total.is_floating_point() else total

    def _sum_with(self, name: str, tensor: Tensor, weight: float) -> Tensor:
        held = self._tensors[name]
        if not tensor.is_floating_point():
            return tensor if weight > self.total else held
        summed = held if self._is_sum else held.double() * self.total
        return summed.add(tensor.double(), alpha=weight)


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
