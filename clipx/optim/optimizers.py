"""Builds the optimizer from its config, and does its step for the training step."""

from copy import deepcopy
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import ProcessGroup
from torch.optim import AdamW, Optimizer

from clipx.config.optim import AdamWConfig, MuonConfig, OptimConfig, StableAdamWConfig, TimmOptimConfig
from clipx.optim.param_groups import block_matrices, parameter_groups

_FLOAT = 4  # bytes


def build_optimizer(config: OptimConfig, model: nn.Module, *, group: ProcessGroup | None = None) -> Optimizer:
    """Builds the optimizer from its config, with all parameters of `model`, also those that do not train yet.

    AdamW is fused, also on the CPU, and not only for speed: its kernel reads `found_inf` on the device (`update`).

    Args:
        config: which one, and its settings.
        model: bare.
        group: of the ranks that will hold equal weights and gradients; Muon shares its work among them.

    Raises:
        InputError: timm cannot build the optimizer (`build_timm_optimizer`), or Muon finds no matrices.
    """
    match config:
        case AdamWConfig():
            return AdamW(parameter_groups(model, config), lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        case StableAdamWConfig():
            from clipx.optim.stable_adamw import StableAdamW

            return StableAdamW(parameter_groups(model, config), lr=config.lr, betas=config.betas, eps=config.eps)
        case MuonConfig():
            from clipx.optim.muon import build_muon

            return build_muon(config, model, group=group)
        case TimmOptimConfig():
            from clipx.optim.from_timm import build_timm_optimizer

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

    AdamW, StableAdamW and Muon decide on the device. For other optimizers the host reads `good`, so in each step it
    waits for the backward pass and cannot prepare the next step meanwhile.

    With fp16 accelerate's wrapper asks the loss scaler, which detects non-finite gradients by itself: it passes its own
    `found_inf` to the optimizer, or waits and skips the step. So it must be called in every step, good or not.

    Args:
        optimizer: of torch, or accelerate's wrapper of it.
        good: bool, 0-dim, on the device, equal on all ranks.
    """
    inner: Any = inner_optimizer(optimizer)
    scaler = getattr(optimizer, "scaler", None)
    stepped = inner if scaler is None else optimizer  # accelerate's wrapper searches for packages in each step
    if takes_found_inf(inner):
        inner.grad_scale = None
        inner.found_inf = (~good).float()
        stepped.step()
    elif scaler is not None or good:
        stepped.step()


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside accelerate's wrapper, or the optimizer itself."""
    return getattr(optimizer, "optimizer", optimizer)


def optimizer_bytes(config: OptimConfig, model: nn.Module) -> int:
    """Bytes of the state after a step, before sharding, without the few numbers that it has per tensor.

    timm's optimizers store none, one, two or four tensors of a weight's size, or parts of such. If the step needs real
    values, the result is an assumption: two tensors per weight. The model does not change; parameters that do not train
    now have no state.
    """
    two_moments = 2 * _FLOAT * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if isinstance(config, MuonConfig):  # momentum alone
        weights = dict(model.named_parameters())
        matrices = (weights[name] for name in block_matrices(model))
        return two_moments - _FLOAT * sum(weight.numel() for weight in matrices if weight.requires_grad)
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


def optimizer_work(config: OptimConfig, model: nn.Module, *, num_ranks: int) -> tuple[float, int]:
    """What a step takes beside reading and writing memory: FLOPs of the busiest rank, and elements that ranks exchange.

    Of Muon alone: other optimizers compute every weight where it is, and timm's are not known.
    """
    if not isinstance(config, MuonConfig):
        return 0.0, 0
    from clipx.optim.muon import muon_work

    return muon_work(config, model, num_ranks=num_ranks)


def _without_values(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of the model with fake weights and gradients, which use no memory."""
    twins: dict[int, object] = {}
    with mode:
        for weight in model.parameters():
            twin = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=weight.requires_grad)
            twin.grad = torch.empty_like(twin) if weight.requires_grad else None
            twins[id(weight)] = twin
    return deepcopy(model, twins)
