"""Patch dropout (FLIP, arXiv 2212.00794, section 3): in training, each image keeps a random share of its patches.

The kept patches are a function of one key per image, and the key is a function of (seed, global batch, slot). So they
do not depend on the number of ranks and micro-batches, and are the same when the gradient cache repeats a forward pass.
No generator state is read or written.

Shape suffixes: B images, P patches, K patches kept.
"""

import torch
from torch import Tensor

from clipx import counter_random
from clipx.counter_random import Stream


def patch_keys(seed: int, batch_index: int, slot_B: Tensor) -> Tensor:
    """The key of each image: int64 (B,), a hash of (seed, purpose, batch index, slot), on the slots' device."""
    first = counter_random.fold(counter_random.start(seed, Stream.PATCH_DROP), batch_index)
    return counter_random.fold(torch.full_like(slot_B, int(first[0])), slot_B)


def num_kept(num_patches: int, rate: float) -> int:
    """Number of patches of an image that are kept: `round(P * (1 - rate))`, at least one."""
    return max(1, round(num_patches * (1 - rate)))


def kept_patches(keys_B: Tensor, *, num_patches: int, rate: float) -> Tensor:
    """Draws the patches of each image that are kept, from the keys int64 (B,) of `patch_keys`.

    Returns:
        int64 (B, K): per row K = `num_kept(P, rate)` different indices from 0 to P - 1, not sorted.
    """
    place_P = torch.arange(num_patches, device=keys_B.device)
    order_BP = counter_random.fold(keys_B[:, None], place_P).argsort(dim=1)
    return order_BP[:, : num_kept(num_patches, rate)]
