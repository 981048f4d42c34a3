"""Spreads a model over the ranks: DDP or FSDP2. The only place that wraps a model.

What changes the blocks themselves (`clipx.distributed.block_transforms`) comes before.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from clipx.config.parallel import DdpConfig, Fsdp2Config
from clipx.distributed.runtime import Runtime

_COMPUTE_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_ENCODERS = ("encode_image", "encode_text")


def parallelize(
    runtime: Runtime, model: nn.Module, optimizer: Optimizer, *, blocks: Sequence[nn.Module] = ()
) -> tuple[nn.Module, Optimizer]:
    """The model and optimizer as they train: on the rank's device, in the run's precision, spread over the ranks.

    The loader and the schedule are never given to accelerate: it would shard the stream a second time and step the
    schedule W times.

    Args:
        runtime: the ranks, and whether they hold the model by DDP or FSDP2.
        model: float32, the same on all ranks.
        optimizer: over the model's parameters, without state as yet.
        blocks: the parts that FSDP2 gathers one at a time; none: the whole model at once.

    Returns:
        The wrapped model (FSDP2: the same object) and accelerate's optimizer, which holds the wrapped parameters.
    """
    config = runtime.parallel
    match config:
        case DdpConfig():
            with warnings.catch_warnings():
                # torch 2.15 renamed the option; the new name does not exist in 2.11
                warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
                wrapped, wrapped_optimizer = runtime.accelerator.prepare(model, optimizer)
            return wrapped, wrapped_optimizer
        case Fsdp2Config():
            _shard(runtime, model, optimizer, config=config, blocks=blocks)
            return model, runtime.accelerator.prepare_optimizer(optimizer)
        case _:
            assert_never(config)


def _shard(
    runtime: Runtime, model: nn.Module, optimizer: Optimizer, *, config: Fsdp2Config, blocks: Sequence[nn.Module]
) -> None:
    """FSDP2 over every block and over the rest, in place.

    By torch's own call and not in accelerate's `prepare`, which (1.15) finds blocks by class name, and of two classes
    named Block the first alone; gathers the temperature in bf16, where a multiplier of 100 moves in steps of 3; and
    ignores FSDP on a CPU, so that no test would run what trains.

    Blocks compute in the run's precision, and their gradients are summed over ranks in float32. The rest (embeddings,
    last norms, projections, temperature) is gathered in float32 and cast by autocast where it is used, as under DDP.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    dtype = _COMPUTE_DTYPES[runtime.accelerator.mixed_precision]
    in_blocks = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32)
    offload = CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy()
    keep = None if config.reshard_after_forward else False  # None: all but the root, whose backward pass comes first
    for block in blocks:
        fully_shard(block, reshard_after_forward=keep, mp_policy=in_blocks, offload_policy=offload)
    fully_shard(model, reshard_after_forward=keep, offload_policy=offload)
    for method in _ENCODERS:  # evaluation calls these, and not the forward pass that gathers parameters
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)
    setattr(model, "forward", runtime.accelerator.autocast()(model.forward))  # noqa: B010  mypy forbids the assignment
    sharded = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [sharded[names[parameter]] for parameter in group["params"]]


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Backward passes within leave gradients on their rank; the next one outside reduces all of them.

    Not accelerate's own, which synchronises after all when DDP runs on one process. FSDP2 reduce-scatters in every
    backward pass, which gives the same sum: to wait for the last one would take unsharded gradients, in float32 the
    largest of what FSDP2 is there to avoid.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def reshard(model: nn.Module) -> None:
    """Frees what FSDP2 has gathered; call after forward passes that no backward pass follows.

    A backward pass does it by itself. Until then the gathered copies stand in for the parameters: what is written to
    the parameters would not be seen, and a checkpoint would look for them in vain. No communication.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor's whole value, gathered by all ranks together; any other tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
