"""Half-precision copies of the weights of linear layers, made once a step instead of once a pass.

Autocast casts weight and bias of a layer in every forward pass, and their gradients back in every backward pass: four
kernels a layer, and of these the first two 2k - 1 times where a batch has k micro-batches. Here one multi-tensor copy
brings the copies of all layers up to date, and the product itself writes the weight's gradient in float32, unrounded.

Parameters stay what they are, in float32, and whoever else sees them (optimizer, DDP, averages, checkpoints) sees no
change. Copies are used within `HalfWeights.fresh` alone, which begins by bringing them up to date, so they are never
stale, as long as parameters are changed in place and not replaced; outside of it, as in an evaluation, autocast casts
as ever.

Shape suffixes: N rows, I inputs and O outputs of a layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from clipx.models.dry_run import DryRun


class HalfWeights:
    """The copies of one model's linear layers.

    Args:
        model: on its device; its plain linear layers become `HalfLinear`, in place.
        dtype: that of the passes under autocast; None means that there are no copies, and the model does not change.
    """

    is_fresh: bool = False
    """Whether the layers compute with their copies now."""

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None) -> None:
        self._weights: list[Tensor] = []
        self._copies: list[Tensor] = []
        self.dtype = dtype
        for layer in [] if dtype is None else [module for module in model.modules() if _is_plain(module)]:
            layer.__class__ = HalfLinear
            layer.halves = self  # type: ignore[assignment]
            layer.half_weight, layer.half_bias = self._copy(layer.weight), self._copy(layer.bias)  # type: ignore[assignment]

    def _copy(self, weight: Tensor | None) -> Tensor | None:
        if weight is None:
            return None
        self._weights.append(weight)
        self._copies.append(torch.empty_like(weight, dtype=self.dtype, requires_grad=False))
        return self._copies[-1]

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """A context in which the layers compute with copies of the weights that they have at its beginning.

        Around whole passes, forward and backward: activation checkpointing runs a part of the first in the second.
        """
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._weights)
        self.is_fresh = True
        try:
            yield
        finally:
            self.is_fresh = False

    def around(self, run: DryRun) -> DryRun:
        """The same passes within `fresh`."""

        def fresh_run(num_pairs: int) -> None:
            with self.fresh():
                run(num_pairs)

        return fresh_run


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer of parameters; hooks (pruning, weight norm) compute weights anew in every pass."""
    if type(module) is not nn.Linear:
        return False
    return all(weight is None or isinstance(weight, nn.Parameter) for weight in (module.weight, module.bias))


class HalfLinear(nn.Linear):
    """A linear layer with copies of its weights. Never constructed: `HalfWeights` assigns this class to layers."""

    halves: HalfWeights
    half_weight: Tensor
    half_bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """What autocast gives, to the last bit; gradients of weights are not rounded to half precision."""
        if not (self.halves.is_fresh and torch.is_autocast_enabled(x.device.type)):
            return super().forward(x)
        x = x.to(self.half_weight.dtype)
        if not torch.is_grad_enabled():
            return functional.linear(x, self.half_weight, self.half_bias)
        result: Tensor = _Product.apply(x, self.weight, self.bias, self.half_weight, self.half_bias)
        return result


class _Product(Function):
    """x times the copy of a weight, with gradients for x and for the float32 parameters.

    With `ctx` in `forward` and no `setup_context`, to spare the host a call in every layer.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, half_OI: Tensor, half_O: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, half_OI)
        return functional.linear(x, half_OI, half_O)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, half_OI = ctx.saved_tensors
        for_x, for_weight, for_bias, _, _ = ctx.needs_input_grad
        gradient_NO, x_NI = (rows.reshape(-1, rows.shape[-1]) for rows in (gradient, x))
        return (
            (gradient_NO @ half_OI).view(x.shape) if for_x else None,
            _float_product(gradient_NO.t(), x_NI) if for_weight else None,
            gradient_NO.sum(0, dtype=torch.float32) if for_bias else None,
            None,
            None,
        )


def _float_product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32 for matrices in half precision, which on CUDA is one product."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()
