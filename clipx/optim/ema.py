"""An exponential moving average of the weights, kept beside them and put in their place for evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from clipx.optim.sharding import local_parts


def ema_decay(step: int, *, decay: float) -> float:
    """Share of the average that stays at a step: min(decay, (1 + step) / (10 + step)).

    The warm-up of TensorFlow's ExponentialMovingAverage (`num_updates`): without it the random weights of the start
    would weigh decay^step, at 0.9999 still a third after 10,000 steps.

    Args:
        step: optimizer steps taken before the one whose weights are averaged in.
        decay: reached in the end, in [0, 1).
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """The average of all parameters of a model, in their dtype and sharded as they are.

    Args:
        model: bare (not DDP's wrapper), on its device, and after FSDP2 has sharded it.
        decay: see `ema_decay`.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._average = {name: parameter.detach().clone() for name, parameter in _parameters(model).items()}

    @torch.no_grad()
    def update(self, good: Tensor, *, step: int) -> None:
        """Moves the average towards the weights after an optimizer step, unless that was a bad one.

        average <- average + good (1 - decay_step) (weights - average). The host does not wait.

        Args:
            good: bool, 0-dim, on the device.
            step: optimizer steps taken before this one.
        """
        weight = (1 - ema_decay(step, decay=self._decay)) * good.double()
        for average, weights in zip(local_parts(self._average.values()), self._weights(), strict=True):
            # one by one: no second copy of the model in between; offloaded weights are on the host
            average.lerp_(weights, weight.to(average.device, average.dtype))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within, the model has the averaged weights, and `state_dict` the trained ones; after it all is as before."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The averages themselves by parameter name; torch.distributed.checkpoint saves them and loads into them."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies averages in; nothing happens to those that were loaded in place."""
        for name, average in self._average.items():
            if state[name] is not average:
                average.copy_(state[name])

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchanges weights and averages bit for bit, with the memory of one tensor."""
        for weights, average in zip(self._weights(), local_parts(self._average.values()), strict=True):
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def _weights(self) -> list[Tensor]:
        parameters = _parameters(self._model)
        return local_parts(parameters[name] for name in self._average)


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name, those that the optimizer holds.

    After a forward pass without a backward pass FSDP2 leaves gathered copies in their place, and would use them again.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return dict(model.named_parameters())
