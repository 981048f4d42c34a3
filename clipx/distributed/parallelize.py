"""Distributes a model over the ranks by DDP or FSDP2, and says what that takes. The only place that wraps a model.

Changes to the blocks themselves (`clipx.distributed.block_transforms`) come before.
"""

import warnings
from collections.abc import Iterable, Sequence
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
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from clipx.config.parallel import DdpConfig, Fsdp2Config, ParallelConfig
from clipx.distributed.runtime import Runtime

MEMORY_FRACTION = 0.9
"""Share of the free memory that is given out; allocators lose some of the rest between blocks."""
_FLOAT = 4  # bytes

_COMPUTE_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_ENCODERS = ("encode_image", "encode_text")


def parallelize(
    runtime: Runtime, model: nn.Module, optimizer: Optimizer, *, blocks: Sequence[nn.Module] = ()
) -> tuple[nn.Module, Optimizer]:
    """Puts the model on this rank's device, in the run's precision, distributed over the ranks, with its optimizer.

    accelerate never gets the loader and the schedule: it would shard the stream a second time, and step the schedule W
    times per step.

    Args:
        runtime: the ranks, and the choice between DDP and FSDP2.
        model: float32, with equal weights on all ranks.
        optimizer: of the model, without state.
        blocks: the parts that FSDP2 gathers one at a time; without any it gathers the whole model at once.

    Returns:
        The wrapped model (with FSDP2 the same object) and accelerate's optimizer, which holds its parameters.
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
    """Applies FSDP2 to every block and then to the rest of the model, in place.

    It calls torch itself and not accelerate's `prepare`, because that (1.15) finds blocks by class name, and only the
    first of two classes named Block; gathers the temperature in bf16, where a multiplier of 100 moves in steps of 3;
    and ignores FSDP on a CPU, so that tests would not run the code that trains.

    Blocks compute in the run's precision, and their gradients are summed over ranks in float32. The rest (embeddings,
    last norms, projections, temperature) is gathered in float32, and autocast casts it at its use, as under DDP.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    dtype = _COMPUTE_DTYPES[runtime.accelerator.mixed_precision]
    in_blocks = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32)
    offload = CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy()
    # None means all modules but the root, because its backward pass comes first.
    keep = None if config.reshard_after_forward else False
    for block in blocks:
        fully_shard(block, reshard_after_forward=keep, mp_policy=in_blocks, offload_policy=offload)
    fully_shard(model, reshard_after_forward=keep, offload_policy=offload)
    for method in _ENCODERS:  # evaluation calls these methods, not the forward pass that gathers parameters
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)
    setattr(model, "forward", runtime.accelerator.autocast()(model.forward))  # noqa: B010  mypy forbids the assignment
    sharded = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [sharded[names[parameter]] for parameter in group["params"]]


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which DDP does not reduce gradients; the first backward pass outside of it reduces all of them.

    accelerate's own version still synchronises if DDP runs on one process. FSDP2 does a reduce-scatter in every
    backward pass, which gives the same sum: reducing only once would need unsharded gradients in float32, the largest
    part of the memory that FSDP2 saves.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def reshard(model: nn.Module) -> None:
    """Frees the parameters that FSDP2 has gathered; call it after a forward pass without a backward pass.

    A backward pass frees them by itself. Until they are freed the gathered copies replace the parameters: the model
    would ignore new values of the parameters, and a checkpoint could not find them. No communication.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """The full value of a sharded tensor, gathered, so all ranks must call it; any other tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor, with the same memory; the tensor itself if it is not sharded."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def sum_over_parts(sums_N: Tensor, *, sharded_as: Tensor) -> Tensor:
    """Adds up the ranks' sums over their parts of N tensors, all sharded as one of them is: one all-reduce, or none."""
    if not isinstance(sharded_as, DTensor):
        return sums_N
    placements = [Partial() if placement.is_shard() else Replicate() for placement in sharded_as.placements]
    return DTensor.from_local(sums_N, sharded_as.device_mesh, placements).full_tensor()


def state_bytes(
    model: nn.Module, *, config: ParallelConfig, blocks: Sequence[nn.Module], world_size: int, extra_bytes: int
) -> int:
    """Bytes per rank that training adds to a bare float32 model: gradients and more; below 0 where sharding frees more.

    `extra_bytes` stay beside weights and gradients before all is sharded: the optimizer's state, an average.
    """
    whole = _FLOAT * num_weights(model)
    if isinstance(config, DdpConfig):
        return whole + extra_bytes
    sizes = [_FLOAT * num_weights(block) for block in blocks]
    rest, largest = whole - sum(sizes), max(sizes, default=0)
    # the rest stays gathered with its gradients, and of the blocks one in use, one on its way, and both's gradients
    gathered = 2 * rest + (2 * largest if config.reshard_after_forward else sum(sizes)) + 2 * largest
    shards = 0 if config.cpu_offload else (2 * whole + extra_bytes) // world_size
    return gathered + shards - whole


def num_weights(module: nn.Module) -> int:
    """Number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
