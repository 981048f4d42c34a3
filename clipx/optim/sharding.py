"""The local parts of parameters that FSDP2 shards, which are enough for elementwise operations, and sums over them."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate


@torch.no_grad()
def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor, with the same memory; the tensor itself if it is not sharded."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def sum_over_parts(sums_N: Tensor, *, sharded_as: Tensor) -> Tensor:
    """Adds up the ranks' sums over their parts, by one all-reduce of N numbers, or none if nothing is sharded.

    Args:
        sums_N: this rank's sums, one for each of N tensors.
        sharded_as: one of these tensors; all must have the same sharding.
    """
    if not isinstance(sharded_as, DTensor):
        return sums_N
    placements = [Partial() if placement.is_shard() else Replicate() for placement in sharded_as.placements]
    return DTensor.from_local(sums_N, sharded_as.device_mesh, placements).full_tensor()
