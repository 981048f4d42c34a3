"""Config to optimizer."""

from torch import nn
from torch.optim import AdamW, Optimizer

from clipx.config.optim import OptimConfig
from clipx.optim.param_groups import decay_groups


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """Fused AdamW over the parameters of `model` that train.

    Fused, on the CPU too, and not only for speed: its kernel takes `found_inf` from the device and leaves parameters,
    moments and step count alone when it is 1, so a bad step is skipped without the host waiting for the loss.
    """
    groups = decay_groups(model, config.weight_decay)
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Gives every group the learning rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside accelerate's wrapper, or the optimizer itself."""
    return getattr(optimizer, "optimizer", optimizer)
