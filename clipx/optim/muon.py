"""Muon (Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024), and AdamW for what is no matrix.

Own code beside timm's, because that orthogonalises in bf16 wherever it runs, one matrix at a time and on every rank.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from clipx.config.optim import MuonConfig
from clipx.distributed.parallelize import local_parts
from clipx.errors import InputError
from clipx.optim.gradients import by_placement, clean_gradients
from clipx.optim.newton_schulz import newton_schulz_flops, orthogonalised
from clipx.optim.param_groups import block_matrices, parameter_groups
from clipx.optim.shared_matrices import SharedMatrices, owners

Scale = Literal["adamw", "spectral"]


class Muon(Optimizer):
    """Muon for groups of matrices, AdamW for all others. For a matrix W with gradient G and momentum M:

        M <- momentum M + (1 - momentum) G,   U = orthogonalised(momentum M + (1 - momentum) G)
        W <- (1 - lr weight_decay) W - lr scale U

    Every matrix is orthogonalised on one rank; ranks get equal shares of that work and the results of the others
    (`SharedMatrices`). On CUDA it is computed and sent in bf16, elsewhere in the weights' dtype. Momentum stands with
    the weight: on every rank under DDP, in shards under FSDP2.

    Like torch's fused AdamW it reads its attributes `found_inf` and `grad_scale` on the device: in a bad step weights,
    momentum, moments and step counts do not change, and the host does not wait. Gradients change in place. Tensors
    without gradient are skipped.

    Args:
        params: groups, each with `parts`: 0 for AdamW, else how many matrices stand in each of its weights.
        group: of the ranks that hold equal weights and gradients.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        iterations: int = 4,
        scale: Scale = "adamw",
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "parts": 0})
        self._momentum, self._iterations, self._scale, self._group = momentum, iterations, scale, group
        self._shared: dict[tuple[int, ...], SharedMatrices] = {}
        """By the ids of the weights that have a gradient, which change when a tower is unlocked."""
        self._step_supports_amp_scaling = True  # how torch marks optimizers that read found_inf and grad_scale

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient; all ranks call it."""
        assert closure is None, "the gradients are computed before the step"
        groups: dict[Tensor, dict[str, Any]] = {}
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["parts"]:
                groups |= dict.fromkeys(params, group)
            elif params:
                self._step_by_adamw(params, group)
        for params in by_placement(groups):
            self._step_matrices(params, [groups[parameter] for parameter in params])

    def _step_by_adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """torch's fused AdamW, on this rank's parts."""
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), device=parameter.device)
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in params]
        adamw(
            local_parts(params),
            local_parts(parameter.grad for parameter in params if parameter.grad is not None),
            local_parts(state["exp_avg"] for state in states),
            local_parts(state["exp_avg_sq"] for state in states),
            [],
            [state["step"] for state in states],
            fused=True,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_matrices(self, params: list[Tensor], groups: Sequence[dict[str, Any]]) -> None:
        shared = self._shared_by(params, [group["parts"] for group in groups])
        grads, bad = clean_gradients(params, self)
        moments = local_parts(self._moments(parameter) for parameter in params)
        kept = torch.full((), self._momentum, dtype=grads[0].dtype, device=bad.device).masked_fill(bad, 1)
        torch._foreach_mul_(moments, kept)
        torch._foreach_add_(moments, grads, alpha=1 - self._momentum)
        torch._foreach_lerp_(grads, moments, self._momentum)
        dtype = torch.bfloat16 if shared.device.type == "cuda" else grads[0].dtype
        compute = partial(orthogonalised, iterations=self._iterations, compute_dtype=dtype)
        updates = shared.computed(shared.views(grads), compute, dtype=dtype)
        weights = shared.views(local_parts(params))
        settings = [(group["lr"], group["weight_decay"]) for group in groups for _ in range(max(1, group["parts"]))]
        scales = [update_scale(*shape, scale=self._scale) for shape in shared.shapes]
        rows: dict[tuple[float, float, float], list[int]] = {}
        for number, ((lr, weight_decay), scale) in enumerate(zip(settings, scales, strict=True)):
            if weights[number].numel():
                rows.setdefault((lr, weight_decay, scale), []).append(number)
        good = (~bad).to(grads[0].dtype)
        for (lr, weight_decay, scale), numbers in rows.items():
            _apply(
                [weights[number] for number in numbers],
                [updates[number] for number in numbers],
                rate=good * lr,
                weight_decay=weight_decay,
                scale=scale,
            )

    def _shared_by(self, params: list[Tensor], parts: Sequence[int]) -> SharedMatrices:
        key = tuple(map(id, params))
        if key not in self._shared:
            cost = partial(newton_schulz_flops, iterations=self._iterations)
            self._shared[key] = SharedMatrices(params, parts, cost=cost, group=self._group)
        return self._shared[key]

    def _moments(self, parameter: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


def _apply(weights: list[Tensor], updates: list[Tensor], *, rate: Tensor, weight_decay: float, scale: float) -> None:
    """W <- (1 - rate weight_decay) W - rate scale U, with `rate` 0-dim on the device; `updates` change."""
    if weight_decay:
        torch._foreach_mul_(weights, 1 - rate * weight_decay)
    torch._foreach_mul_(updates, -rate * scale)
    torch._foreach_add_(weights, updates)


def update_scale(rows: int, columns: int, *, scale: Scale) -> float:
    """What an orthogonalised matrix is multiplied by.

    adamw: 0.2 sqrt(max(rows, columns)) (arXiv 2502.16982, section 2.2), since the root mean square of an orthogonal
    matrix is 1 / sqrt(max(rows, columns)) and that of AdamW's updates is about 0.2; spectral: Jordan's.
    """
    match scale:
        case "adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        case "spectral":
            return math.sqrt(max(1.0, rows / columns))
        case unknown:
            assert_never(unknown)


def build_muon(config: MuonConfig, model: nn.Module, *, group: ProcessGroup | None) -> Muon:
    """Builds Muon for the matrices of the towers' blocks, with AdamW for all other parameters.

    Raises:
        InputError: no tower has blocks with matrices.
    """
    names, matrices = {parameter: name for name, parameter in model.named_parameters()}, block_matrices(model)
    if not matrices:
        raise InputError(
            "optim.type=muon learns matrices of blocks, and no tower has linear layers in a stack of blocks; "
            "choose adamw"
        )
    split: list[dict[str, Any]] = []
    for each in parameter_groups(model, config):
        by_parts: dict[int, list[nn.Parameter]] = {}
        for parameter in each["params"]:
            by_parts.setdefault(matrices.get(names[parameter], 0), []).append(parameter)
        for parts, params in sorted(by_parts.items(), reverse=True):
            lr_scale = each["lr_scale"] * (1.0 if parts else config.adamw_lr_scale)
            split.append({**each, "params": params, "parts": parts, "lr_scale": lr_scale})
    return Muon(
        split,
        lr=config.lr,
        momentum=config.momentum,
        iterations=config.iterations,
        scale=config.scale,
        betas=config.betas,
        eps=config.eps,
        group=group,
    )


def muon_work(config: MuonConfig, model: nn.Module, *, num_ranks: int) -> tuple[float, int]:
    """What Muon adds to a step beside reading and writing memory, for the matrices that have a gradient.

    Returns:
        FLOPs of the rank that has most of them, and the number of elements of all matrices, which are exchanged.
    """
    weights = dict(model.named_parameters())
    shapes: list[tuple[int, int]] = []
    for name, parts in block_matrices(model).items():
        if weights[name].requires_grad:
            shapes += [(weights[name].shape[0] // parts, weights[name].shape[1])] * parts
    flops = tuple(newton_schulz_flops(*shape, iterations=config.iterations) for shape in shapes)
    loads = [0.0] * num_ranks
    for owner, cost in zip(owners(flops, num_ranks), flops, strict=True):
        loads[owner] += cost
    return max(loads), sum(rows * columns for rows, columns in shapes)
