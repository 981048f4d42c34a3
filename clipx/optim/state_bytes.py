"""Memory of an optimizer's state, measured by a step with tensors that have shapes but no values."""

from copy import deepcopy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clipx.config.optim import OptimConfig, TimmOptimConfig
from clipx.optim.optimizers import build_optimizer

_FLOAT = 4  # bytes


def optimizer_bytes(config: OptimConfig, model: nn.Module) -> int:
    """Bytes of the state after a step, before sharding, without the few numbers that it has per tensor.

    timm's optimizers store none, one, two or four tensors of a weight's size, or parts of such. If the step needs real
    values, the result is an assumption: two tensors per weight.

    Args:
        config: the config of the optimizer.
        model: does not change; parameters that do not train now have no state.
    """
    two_moments = 2 * _FLOAT * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if not isinstance(config, TimmOptimConfig):
        return two_moments
    mode = FakeTensorMode()
    twin = _without_values(model, mode)
    # Compiled code would read the values from memory and end the process.
    with mode, torch.compiler.set_stance("force_eager"):
        try:
            optimizer = build_optimizer(config, twin)
            optimizer.step()
        except Exception:  # it reads values of its tensors, which have none here
            return two_moments
        values = (value for state in optimizer.state.values() for value in state.values())
        return sum(value.nbytes for value in values if torch.is_tensor(value))


def _without_values(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of the model with fake weights and gradients, which use no memory."""
    twins: dict[int, object] = {}
    with mode:
        for weight in model.parameters():
            twin = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=weight.requires_grad)
            twin.grad = torch.empty_like(twin) if weight.requires_grad else None
            twins[id(weight)] = twin
    return deepcopy(model, twins)
