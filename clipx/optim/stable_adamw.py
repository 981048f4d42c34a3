"""AdamW with update clipping (arXiv 2304.13013, algorithm 2), which avoids spikes of the loss.

Spikes come from second moments that are too old for the current gradients. If a tensor's gradient is larger than its
second moment predicts, its learning rate is divided, in this step, by the root mean square of their ratio.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from clipx.distributed.parallelize import local_parts, sum_over_parts
from clipx.optim.gradients import by_placement, clean_gradients


class StableAdamW(Optimizer):
    """AdamW with update clipping. For each tensor w with gradient g and its debiased moments m and u:

        rms = sqrt(mean(g^2 / max(u, eps^2))),  eta = lr / max(1, rms),  w <- (1 - eta weight_decay) w
                                                                              - eta m / (sqrt(u) + eps)

    Like torch's fused AdamW it reads its attributes `found_inf` and `grad_scale`, tensors on the device: gradients are
    divided by `grad_scale`, and if `found_inf` is 1, parameters, moments and step counts do not change. The host does
    not wait. Tensors without gradient are skipped. The root mean square is that of the full tensor, also if FSDP2
    shards it: one all-reduce of a number per tensor.

    The stored moments are biased, like Adam's; the paper's recursion stores the debiased ones, which is equivalent.
    A group of parameters may have settings of its own.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._step_supports_amp_scaling = True  # how torch marks optimizers that read found_inf and grad_scale

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient."""
        assert closure is None, "the gradients are computed before the step"
        for group in self.param_groups:
            for params in by_placement(parameter for parameter in group["params"] if parameter.grad is not None):
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """One step of N parameters with equal device, dtype and sharding; suffix N: a number per parameter."""
        beta1, beta2 = group["betas"]
        eps, weight_decay = group["eps"], group["weight_decay"]
        states = [self._parameter_state(parameter) for parameter in params]
        steps = [state["step"] for state in states]
        first = local_parts(state["exp_avg"] for state in states)
        second = local_parts(state["exp_avg_sq"] for state in states)
        weights, dtype = local_parts(params), params[0].dtype
        grads, bad = clean_gradients(params, self)

        torch._foreach_add_(steps, [(~bad).float()] * len(steps))  # of one tensor torch reads the value on the host
        for moments, beta in ((first, beta1), (second, beta2)):
            decay = torch.full((), beta, dtype=dtype, device=bad.device).masked_fill(bad, 1)
            torch._foreach_mul_(moments, decay)
        torch._foreach_add_(first, grads, alpha=1 - beta1)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)

        step_N = torch.stack(steps).double().clamp(min=1)  # 0 if the very first step is bad
        roots = list(torch._foreach_sqrt(second))
        torch._foreach_div_(roots, (1 - beta2**step_N).sqrt().to(dtype).unbind())
        eta_N = (group["lr"] / _rms_ratio(params, grads, roots, eps).clamp(min=1)).masked_fill(bad, 0)
        torch._foreach_add_(roots, eps)
        updates = torch._foreach_div(first, roots)
        torch._foreach_mul_(updates, (-eta_N / (1 - beta1**step_N)).to(dtype).unbind())
        if weight_decay:
            torch._foreach_mul_(weights, (1 - eta_N * weight_decay).to(dtype).unbind())
        torch._foreach_add_(weights, updates)

    def _parameter_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _rms_ratio(params: list[Tensor], grads: list[Tensor], roots: list[Tensor], eps: float) -> Tensor:
    """Root mean square, over full tensors, of the gradient over the root of the second moment: float64 (N,)."""
    ratios = torch._foreach_div(grads, torch._foreach_clamp_min(roots, eps))
    norms = list(torch._foreach_norm(ratios))
    torch._foreach_div_(norms, [math.sqrt(parameter.numel()) for parameter in params])
    return sum_over_parts(torch.stack(norms).double().square(), sharded_as=params[0]).sqrt()
