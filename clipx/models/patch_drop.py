"""Patch dropout (FLIP, arXiv 2212.00794, section 3): in training, each image keeps a random share of its patches.

Which patches stay is a function of one key per image, and the key a function of (seed, global batch, slot): the same
patches for every number of ranks and micro-batches, and again when the gradient cache repeats a forward pass. No
generator state is read or written.

Shape suffixes: B images, N tokens of an image (prefix and patches), P patches, K patches kept, C channels.
"""

import torch
from torch import Tensor, nn

from clipx import counter_random
from clipx.counter_random import Stream


def patch_keys(seed: int, batch_index: int, slot_B: Tensor) -> Tensor:
    """The key of each image: int64 (B,), a hash of (seed, purpose, batch index, slot), on the slots' device."""
    first = counter_random.fold(counter_random.start(seed, Stream.PATCH_DROP), batch_index)
    return counter_random.fold(torch.full_like(slot_B, int(first[0])), slot_B)


class PatchDrop(nn.Module):
    """Keeps `round(P * (1 - rate))` patches of every image, at least one, and all prefix tokens.

    Takes the place of timm's module of this name, which sits after the position embedding and is called with the tokens
    alone; so the tower gives the keys beforehand, for one call.

    Args:
        rate: share of patches left out, in [0, 1).
        num_prefix_tokens: tokens before the patches that always stay (class token, registers).
    """

    def __init__(self, rate: float, *, num_prefix_tokens: int) -> None:
        super().__init__()
        self.rate = rate
        self.num_prefix_tokens = num_prefix_tokens
        self.keys_B: Tensor | None = None

    def forward(self, x_BNC: Tensor) -> Tensor:
        """(B, N, C) in, (B, prefix + K, C) out; in evaluation, or without a rate, what came in."""
        if not self.training or self.rate == 0:
            return x_BNC
        assert self.keys_B is not None, "patch dropout in training needs the images' keys (VisionTower.forward)"
        prefix, patches_BPC = x_BNC.tensor_split([self.num_prefix_tokens], dim=1)
        num_patches = patches_BPC.shape[1]
        num_kept = max(1, round(num_patches * (1 - self.rate)))
        place_P = torch.arange(num_patches, device=x_BNC.device)
        order_BP = counter_random.fold(self.keys_B[:, None], place_P).argsort(dim=1)
        kept_BKC = order_BP[:, :num_kept, None].expand(-1, -1, x_BNC.shape[2])
        return torch.cat((prefix, patches_BPC.gather(1, kept_BKC)), dim=1)
