"""Config to optimizer, and what the training step does with it."""

from typing import Any, assert_never

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from clipx.config.optim import AdamWConfig, OptimConfig, StableAdamWConfig, TimmOptimConfig
from clipx.optim.from_timm import build_timm_optimizer
from clipx.optim.param_groups import parameter_groups
from clipx.optim.stable_adamw import StableAdamW


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """The optimizer that the config describes, over all parameters of `model`, also those that do not train yet.

    AdamW is fused, on the CPU too, and not only for speed: its kernel takes `found_inf` from the device (`update`).

    Raises:
        InputError: from timm's optimizers.
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
    """Gives every group its share of this step's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def takes_found_inf(optimizer: Optimizer) -> bool:
    """Whether the optimizer itself leaves everything as it is where its `found_inf`, on the device, is 1."""
    return getattr(inner_optimizer(optimizer), "_step_supports_amp_scaling", False)


def update(optimizer: Optimizer, good: Tensor) -> None:
    """The optimizer's step, or none: parameters, moments and step counts stay as they are unless `good`.

    The device decides where the optimizer can (AdamW, StableAdamW). For the others the host reads `good` and so waits
    for the backward pass: a wait per step, in which it prepares nothing ahead.

    With fp16 accelerate's wrapper asks the loss scaler instead, which finds non-finite gradients by itself: it passes
    its own `found_inf` on, or waits and leaves the step out; it must be called in every step, bad or not.

    Args:
        optimizer: as built, or in accelerate's wrapper.
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
