"""An exponential moving average of the weights, stored beside them and swapped with them for evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clipx.distributed.parallelize import local_parts, reshard


def ema_decay(step: int, *, decay: float) -> float:
    """The decay of the average at a step: min(decay, (1 + step) / (10 + step)).

    This is the warm-up of TensorFlow's ExponentialMovingAverage (`num_updates`). Without it the random initial weights
    would have the weight decay^step, which for 0.9999 is still a third after 10,000 steps. `step` counts the optimizer
    steps before the one whose weights are added.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """The average of all parameters of a model, with their dtype and their sharding.

    Args:
        model: not wrapped by DDP, on its device, and already sharded if it uses FSDP2.
        decay: the final decay, see `ema_decay`.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._average = {name: parameter.detach().clone() for name, parameter in self._parameters().items()}

    @torch.no_grad()
    def update(self, good: Tensor, *, step: int) -> None:
        """Moves the average towards the weights after an optimizer step, if the step was good.

        average <- average + good (1 - decay_step) (weights - average), with `good` bool, 0-dim, on the device; `step`
        counts the steps before this one. The host does not wait.
        """
        averages = local_parts(self._average.values())
        # Gradient descent with decay 1 on the gradient -weights is this average, and of all that torch has only its
        # fused kernel takes all tensors at once, without a second copy, and reads on the device whether to do nothing.
        torch._fused_sgd_(
            averages,
            self._weights(),
            [],
            maximize=True,
            weight_decay=1.0,
            lr=1 - ema_decay(step, decay=self._decay),
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
            is_first_step=False,
            found_inf=(~good).to(averages[0].device, torch.float32),  # offloaded weights are on the host
        )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """A context in which the model has the averaged weights and `state_dict` has the trained ones."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name, not copied; torch.distributed.checkpoint saves them and loads into them."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies averages from a state, except those that were loaded in place."""
        for name, average in self._average.items():
            if state[name] is not average:
                average.copy_(state[name])

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchanges weights and averages without rounding, with extra memory for one tensor."""
        for weights, average in zip(self._weights(), local_parts(self._average.values()), strict=True):
            trained = weights.clone()
            weights.copy_(average)
            average.copy_(trained)

    def _weights(self) -> list[Tensor]:
        parameters = self._parameters()
        return local_parts(parameters[name] for name in self._average)

    def _parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by name, the same tensors that the optimizer holds, and not FSDP2's gathered copies."""
        reshard(self._model)
        return dict(self._model.named_parameters())
