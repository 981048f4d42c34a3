"""timm's optimizers by name, tried out on small tensors before the run starts."""

import difflib
from itertools import chain
from typing import Any

import torch
from timm.optim import Muon, create_optimizer_v2, list_optimizers
from torch import Tensor, nn
from torch.optim import Optimizer

from clipx.config.optim import TimmOptimConfig
from clipx.errors import InputError
from clipx.optim.param_groups import parameter_groups

_OURS = {"params", "lr", "weight_decay"}
_SAVED = (Tensor, int, float)
# tried on two ranks: torch cannot shard an operation
_NOT_SHARDED = ("adamuon", "nadamuon", "mars", "novograd", "adamp", "sgdp")


def build_timm_optimizer(config: TimmOptimConfig, model: nn.Module) -> Optimizer:
    """Builds timm's optimizer of this name, with timm's defaults for all that is not in `options`.

    Muon orthogonalises the weights of linear layers and convolutions. All other parameters (embeddings of tokens and
    positions, gains, biases, the temperature), and weights that are too small or too flat for it, are updated by the
    AdamW inside of it, as its author (Jordan, "Muon", 2024) and timm advise.

    Raises:
        InputError: timm does not have the name, does not accept the options, or the optimizer cannot be used here.
    """
    if config.name not in list_optimizers():
        nearest = difflib.get_close_matches(config.name, list_optimizers(), n=3)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "`timm.optim.list_optimizers()` lists them"
        raise InputError(f"optim.name={config.name} is no optimizer of timm's; {hint}")
    if ours := _OURS & config.options.keys():
        raise InputError(
            f"optim.options may not hold {', '.join(sorted(ours))}; optim has lr and weight_decay for these"
        )
    groups = parameter_groups(model, config)
    kind = _try_out(config, device=groups[0]["params"][0].device)
    return _create(config, _with_fallback(groups, model) if issubclass(kind, Muon) else groups)


def check_sharded(config: TimmOptimConfig) -> None:
    """Checks that the optimizer can update parameters that FSDP2 has sharded.

    Raises:
        InputError: it uses an operation that torch cannot run on sharded tensors.
    """
    if config.name in _NOT_SHARDED:
        raise InputError(
            f"optim.name={config.name} cannot step sharded parameters; "
            "set parallel.type=ddp or choose another optimizer"
        )


def _create(config: TimmOptimConfig, groups: list[dict[str, Any]]) -> Optimizer:
    optimizer: Optimizer = create_optimizer_v2(groups, opt=config.name, lr=config.lr, **config.options)
    return optimizer


def _try_out(config: TimmOptimConfig, device: torch.device) -> type[Optimizer]:
    """Runs two steps on small tensors, to detect wrong options now and not at the first step or the first save.

    Returns:
        The optimizer's class.

    Raises:
        InputError: the optimizer cannot be built, its step fails, or a checkpoint cannot hold its state.
    """
    values = torch.linspace(-1, 1, 64, device=device)
    params = [nn.Parameter(values.view(shape)) for shape in ((8, 8), (64,), (4, 4, 2, 2))]
    try:
        optimizer = _create(config, [{"params": params, "weight_decay": 0.1, "lr_scale": 1.0}])
        for _ in range(2):
            for parameter in params:
                parameter.grad = parameter.detach().cos()
            optimizer.step()
    except Exception as error:  # an optimizer may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"optim.name={config.name} with options={config.options} does not work here: {reason}; "
            "mend the options or choose another optimizer"
        ) from error
    state_values = chain.from_iterable(state.items() for state in optimizer.state.values())
    unfit = {f"{name} ({type(value).__name__})" for name, value in state_values if not isinstance(value, _SAVED)}
    if unfit:
        raise InputError(
            f"optim.name={config.name} keeps a state that a checkpoint cannot hold: {', '.join(sorted(unfit))}; "
            "choose another"
        )
    return type(optimizer)


def _with_fallback(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Splits each group in two: weights of linear layers and convolutions, and those for the AdamW inside of Muon."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hidden = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
    split: list[dict[str, Any]] = []
    for group in groups:
        for fallback in (False, True):
            params = [parameter for parameter in group["params"] if (id(parameter) not in hidden) == fallback]
            if params:
                split.append({**group, "params": params, "use_fallback": fallback})
    return split
