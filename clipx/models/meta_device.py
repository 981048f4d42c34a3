"""Runs a module on the meta device, without arithmetic: to count its FLOPs, or to see if it accepts an input."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


@torch.no_grad()
def run_on_meta(module: nn.Module, *args: Tensor) -> Any:
    """The module's output for tensors on the meta device; its parameters and buffers do not change.

    Args:
        module: not yet distributed over ranks.
        args: tensors on the meta device with at least two samples, which batch statistics in training need.
    """
    tensors: Iterator[tuple[str, Tensor]] = chain(module.named_parameters(), module.named_buffers())
    return functional_call(module, {name: tensor.to("meta") for name, tensor in tensors}, args)
