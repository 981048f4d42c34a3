"""Runs a module without arithmetic: what it computes with, and whether it takes an input, at no cost."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


@torch.no_grad()
def run_on_meta(module: nn.Module, *args: Tensor) -> Any:
    """The module's output for tensors on the meta device; its own parameters and buffers stay as they are.

    Args:
        module: not yet spread over ranks.
        args: tensors on the meta device; at least two samples, since batch statistics in training need that.
    """
    own: Iterator[tuple[str, Tensor]] = chain(module.named_parameters(), module.named_buffers())
    return functional_call(module, {name: tensor.to("meta") for name, tensor in own}, args)
