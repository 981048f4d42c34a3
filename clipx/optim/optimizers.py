"""Builds the optimizer from its config, and does its step for the training step."""

from typing import Any, assert_never

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from clipx.config.optim import AdamWConfig, OptimConfig, StableAdamWConfig, TimmOptimConfig
from clipx.optim.from_timm import build_timm_optimizer
from clipx.optim.param_groups import parameter_groups
from clipx.optim.stable_adamw import StableAdamW


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """Builds the optimizer from its config, with all parameters of `model`, also those that do not train yet.

    AdamW is fused, also on the CPU, and not only for speed: its kernel reads `found_inf` on the device (`update`).

    Raises:
        InputError: timm cannot build the optimizer (`build_timm_optimizer`).
    """
    match config:
        case AdamWConfig():
            groups = parameter_groups(model, config)
            return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        case StableAdamWConfig():
            groups = parameter_groups(model, config)
            return StableAdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
        case TimmOptimConfig():
            return build_timm_optimizer(config, model)
        case unknown:
            assert_never(unknown)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of every group: `lr` times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def takes_found_inf(optimizer: Optimizer) -> bool:
    """Whether the optimizer itself skips its step if its `found_inf`, on the device, is 1."""
    return getattr(inner_optimizer(optimizer), "_step_supports_amp_scaling", False)


def update(optimizer: Optimizer, good: Tensor) -> None:
    """Does the optimizer's step if `good`; otherwise parameters, moments and step counts do not change.

    AdamW and StableAdamW decide on the device. For other optimizers the host reads `good`, so in each step it waits for
    the backward pass and cannot prepare the next step meanwhile.

    With fp16 accelerate's wrapper asks the loss scaler, which detects non-finite gradients by itself: it passes its own
    `found_inf` to the optimizer, or waits and skips the step. So it must be called in every step, good or not.

    Args:
        optimizer: the optimizer, or accelerate's wrapper of it.
        good: bool, 0-dim, on the device, equal on all ranks.
    """
    inner: Any = inner_optimizer(optimizer)
    if takes_found_inf(inner):
        inner.grad_scale = None
        inner.found_inf = (~good).float()
        optimizer.step()
    elif getattr(optimizer, "scaler", None) is not None or good:
        optimizer.step()


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside accelerate's wrapper, or the optimizer itself."""
    return getattr(optimizer, "optimizer", optimizer)
