"""Dropout (arXiv 1207.0580) whose mask is a function of one key per sample and of the layer's number.

The key is a function of (seed, global batch, slot), as that of patch dropout. So curves depend neither on the number of
ranks nor on that of micro-batches, and a repeated forward pass drops the same. No generator state is read or written.

Shape suffixes: B samples, N numbers of a sample.
"""

import math

import torch
from torch import Tensor, nn

from clipx import counter_random
from clipx.counter_random import Stream


def dropout_keys(seed: int, batch_index: int, slot_B: Tensor) -> Tensor:
    """The key of each sample: int64 (B,), a hash of (seed, purpose, batch index, slot), on the slots' device."""
    first = counter_random.fold(counter_random.start(seed, Stream.HEAD_DROPOUT), batch_index)
    return counter_random.fold(torch.full_like(slot_B, int(first[0])), slot_B)


class SlotDropout(nn.Module):
    """Replaces each number by 0 with probability `rate` and divides the others by 1 - `rate`.

    Args:
        rate: at least 0, below 1.
    """

    site: int | None = None
    """Number of this layer in its model (`number_sites`). Layers of one number would drop the same positions."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        assert 0 <= rate < 1, f"rate={rate} is not in [0, 1)"
        self.rate = rate
        # Uniform over all int16, of which a share `rate`, rounded up to 2^-16, is below this.
        self.lowest_kept = min(math.ceil(rate * 2**16), 2**16 - 1) - 2**15

    def forward(self, x: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Maps (B, ...) to the same shape.

        Args:
            x: of any dtype and any number of axes after the first.
            keys_B: int64 (B,), of `dropout_keys`; None (evaluation) drops nothing.
        """
        if keys_B is None or self.rate == 0:
            return x
        assert self.site is not None, "number_sites(model) was not called"
        num_places = math.prod(x.shape[1:])
        # A hash has the bits of four places: of the step of a small model, hashing is what takes longest.
        place_N = torch.arange(-(-num_places // 4), device=x.device)
        bits_BN = counter_random.fold(keys_B[:, None], self.site, place_N).view(torch.int16)[:, :num_places]
        kept_BN = (bits_BN >= self.lowest_kept).to(x.dtype)  # a product is faster than `where`, in both directions
        return x * kept_BN.view(x.shape) / (1 - self.rate)


def number_sites(model: nn.Module) -> None:
    """Gives every slot dropout inside `model` a number of its own, from 0 in the order of its modules.

    The outermost model calls it once, when it is complete.
    """
    layers = [module for module in model.modules() if isinstance(module, SlotDropout)]
    for site, layer in enumerate(layers):
        layer.site = site
