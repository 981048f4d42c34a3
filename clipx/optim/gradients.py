"""What optimizers that decide on the device have in common: gradients as they enter a step, tensors of one kind."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from clipx.distributed.parallelize import local_parts


def clean_gradients(params: list[Tensor], optimizer: Optimizer) -> tuple[list[Tensor], Tensor]:
    """Unscaled gradients, 0 in a bad step, and whether the step is bad: bool, 0-dim, on the device.

    Like torch's fused AdamW it reads the optimizer's attributes `found_inf` and `grad_scale`. The gradients are this
    rank's parts, and change in place.
    """
    grads = local_parts(parameter.grad for parameter in params if parameter.grad is not None)
    found_inf, grad_scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if grad_scale is not None:
        torch._foreach_div_(grads, grad_scale.to(grads[0].device, grads[0].dtype))
    if found_inf is None:
        return grads, torch.zeros((), dtype=torch.bool, device=grads[0].device)
    bad = found_inf.to(grads[0].device).squeeze() != 0
    for grad in grads:
        grad.masked_fill_(bad, 0)  # not a product, because NaN times 0 is NaN
    return grads, bad


def by_placement(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Groups parameters by device, dtype and sharding; each group keeps their order."""
    groups: dict[Any, list[Tensor]] = {}
    for parameter in params:
        sharding = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
        groups.setdefault((parameter.device, parameter.dtype, sharding), []).append(parameter)
    return list(groups.values())
