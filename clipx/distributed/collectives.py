"""The collectives that clipx uses, each with an explicit process group; `group=None` is one process alone.

Nothing here is differentiable: losses write their own backward pass over these. All ranks of a group call alike, with
tensors of equal shape and dtype. NCCL and gloo both have every one of them for torch >= 2.11.
"""

from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


def rank(group: ProcessGroup | None) -> int:
    """This process's place in the group, from 0."""
    return 0 if group is None else dist.get_rank(group)


def world_size(group: ProcessGroup | None) -> int:
    """W, the number of processes in the group."""
    return 1 if group is None else dist.get_world_size(group)


def all_gather(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """All ranks' tensors along the first dimension, in the order of ranks: (B, ...) to (W B, ...); alone, x itself."""
    if group is None:
        return x
    gathered = x.new_empty((world_size(group) * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(gathered, x.contiguous(), group=group)
    return gathered


def reduce_scatter_sum(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """This rank's part of the sum over ranks: (W B, ...) to (B, ...), summed in x's dtype; alone, x itself."""
    if group is None:
        return x
    size = world_size(group)
    assert x.shape[0] % size == 0, f"{x.shape[0]} rows on {size} ranks"
    part = x.new_empty((x.shape[0] // size, *x.shape[1:]))
    dist.reduce_scatter_tensor(part, x.contiguous(), op=dist.ReduceOp.SUM, group=group)
    return part


def all_reduce(x: Tensor, op: Literal["sum", "max"], group: ProcessGroup | None) -> Tensor:
    """Combines x over the ranks, in place, and returns it."""
    if group is not None:
        dist.all_reduce(x, op=_OPERATIONS[op], group=group)
    return x


def gather_objects(value: Any, group: ProcessGroup | None) -> list[Any]:
    """Every rank's (picklable) value, in the order of ranks, on every rank."""
    if group is None:
        return [value]
    values: list[Any] = [None] * world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
