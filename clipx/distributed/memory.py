"""Memory of a rank that holds a model with its gradients and optimizer, replicated or sharded."""

from collections.abc import Sequence

from torch import nn

from clipx.config.parallel import DdpConfig, ParallelConfig

MEMORY_FRACTION = 0.9
"""Share of the free memory that is given out; allocators lose some of the rest between blocks."""
_FLOAT = 4  # bytes


def state_bytes(
    model: nn.Module, *, config: ParallelConfig, blocks: Sequence[nn.Module], world_size: int, extra_bytes: int
) -> int:
    """Bytes per rank that training adds to a bare float32 model: gradients and more; below 0 where sharding frees more.

    Args:
        model: bare, every weight on the device.
        config: DDP or FSDP2.
        blocks: what FSDP2 gathers one at a time.
        world_size: W.
        extra_bytes: what stays beside weights and gradients before it is sharded: the optimizer's state, an average of
            the weights.
    """
    whole = _FLOAT * _numel(model)
    if isinstance(config, DdpConfig):
        return whole + extra_bytes
    sizes = [_FLOAT * _numel(block) for block in blocks]
    rest, largest = whole - sum(sizes), max(sizes, default=0)
    # the rest stays gathered with its gradients, and of the blocks one in use, one on its way, and both's gradients
    gathered = 2 * rest + (2 * largest if config.reshard_after_forward else sum(sizes)) + 2 * largest
    shards = 0 if config.cpu_offload else (2 * whole + extra_bytes) // world_size
    return gathered + shards - whole


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
