"""Parameters that FSDP2 shards, as this rank holds them: what is done to every element alike needs no more."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate


@torch.no_grad()
def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor, sharing its memory; the tensor itself where it is not sharded."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def sum_over_parts(sums_N: Tensor, *, sharded_as: Tensor) -> Tensor:
    """Adds what every rank summed over its parts: one all-reduce of N numbers, none where nothing is sharded.

    Args:
        sums_N: this rank's sums, one for each of N tensors.
        sharded_as: one of these tensors; all are spread over the ranks as it is.
    """
    if not isinstance(sharded_as, DTensor):
        return sums_N
    placements = [Partial() if placement.is_shard() else Replicate() for placement in sharded_as.placements]
    return DTensor.from_local(sums_N, sharded_as.device_mesh, placements).full_tensor()
