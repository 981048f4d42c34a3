"""What an optimizer's state takes, found by a step that has shapes and no numbers."""

from copy import deepcopy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clipx.config.optim import OptimConfig, TimmOptimConfig
from clipx.optim.optimizers import build_optimizer

_FLOAT = 4  # bytes


def optimizer_bytes(config: OptimConfig, model: nn.Module) -> int:
    """Bytes of the state after a step, before it is sharded, beside a few numbers per tensor.

    timm's optimizers keep none, one, two or four tensors of a weight's size, or parts of such. Two are taken for those
    whose step needs real numbers.

    Args:
        config: of the optimizer.
        model: stays as it is; what does not train now has no state.
    """
    of_moments = 2 * _FLOAT * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if not isinstance(config, TimmOptimConfig):
        return of_moments
    mode = FakeTensorMode()
    twin = _without_numbers(model, mode)
    # Compiled code would look for the numbers in memory and end the process.
    with mode, torch.compiler.set_stance("force_eager"):
        try:
            optimizer = build_optimizer(config, twin)
            optimizer.step()
        except Exception:  # it looks into its tensors, and here they have no numbers
            return of_moments
        values = (value for state in optimizer.state.values() for value in state.values())
        return sum(value.nbytes for value in values if torch.is_tensor(value))


def _without_numbers(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy whose weights and gradients are the mode's and take no memory."""
    twins: dict[int, object] = {}
    with mode:
        for weight in model.parameters():
            twin = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=weight.requires_grad)
            twin.grad = torch.empty_like(twin) if weight.requires_grad else None
            twins[id(weight)] = twin
    return deepcopy(model, twins)
