"""What crosses borders: `Batch` from the data stream to the towers, `Embeddings` from the towers to the loss.

Shape suffixes: B pairs of this rank (or micro-batch), I pictures of them, H x W pixels, C channels, D embedding, T
tokens of B texts.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read as a pair, and why; a later good sample of its lane took its place."""

    source: str
    shard: str
    key: str
    reason: str
    sample_id: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B image-text pairs of one rank, ordered by slot.

    Each picture stands once and has `captions_per_image` texts, one after the other: I = B / captions_per_image.
    Texts are one flat array of real tokens, without padding: text i is `tokens[sum(lengths[:i]):][:lengths[i]]`.
    """

    index: int
    """Place of the global batch in the data order, from 0."""
    images_IHWC: Tensor
    """uint8 (I, H, W, 3), RGB."""
    tokens_T: Tensor
    """int64 (T,), T = lengths.sum()."""
    lengths_B: Tensor
    """int64 (B,), tokens of each text with its start and end tokens."""
    max_length: int
    """An upper bound of `lengths_B` known on the host, so that padding never waits for the device."""
    sample_id_I: Tensor
    """int64 (I,), names the sample within the run; equal ids in a batch are not each other's negatives."""
    slot_I: Tensor
    """int64 (I,), place in the global batch, 0 to G / captions_per_image - 1."""
    source_I: Tensor
    """int64 (I,), index of the data source."""
    captions_per_image: int = 1
    group_id_B: Tensor | None = None
    """int64 (B,), pairs of equal id are not each other's negatives; none: those of the same sample alone."""
    augment_seeds: tuple[int, ...] = ()
    """Of the I pictures, for the augmentations that the device computes; empty where there are none."""
    bad: tuple[BadSample, ...] = field(default=())
    """Samples found bad while this part of the batch was read."""
    num_fallbacks: int = 0
    """Pictures that the fast decoder could not read and Pillow did."""
    read_wait_s: float = 0.0
    """Seconds that the loader processes waited for remote storage, summed."""

    def __len__(self) -> int:
        return self.lengths_B.shape[0]

    def to(self, device: torch.device) -> Self:
        """The same batch with every tensor on `device` (asynchronously where memory is pinned)."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self._tensors().items()}
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; what lies there already is not copied."""
        return replace(self, **{name: value.pin_memory() for name, value in self._tensors().items()})

    def no_negatives(self) -> Tensor:
        """int64 (B,): pairs of equal numbers are not each other's negatives."""
        return self.sample_of_pair() if self.group_id_B is None else self.group_id_B

    def sample_of_pair(self) -> Tensor:
        """int64 (B,): the sample of each pair."""
        return self.sample_id_I.repeat_interleave(self.captions_per_image)

    def micro_batches(self, size: int) -> list["Batch"]:
        """Consecutive pieces of `size` pairs; pictures stay with their captions, texts are cut at their borders."""
        if size >= len(self):
            return [self]
        token_counts = [int(part.sum()) for part in self.lengths_B.split(size)]
        num_images = size // self.captions_per_image
        pieces = {
            name: value.split(token_counts if name == "tokens_T" else size if name.endswith("_B") else num_images)
            for name, value in self._tensors().items()
        }
        seeds = [self.augment_seeds[first : first + num_images] for first in range(0, len(self.slot_I), num_images)]
        return [
            replace(
                self,
                **{name: parts[number] for name, parts in pieces.items()},
                augment_seeds=seeds[number],
                bad=(),
                num_fallbacks=0,
                read_wait_s=0.0,
            )
            for number in range(len(token_counts))
        ]

    def _tensors(self) -> dict[str, Any]:
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """What the towers give the loss."""

    image_BD: Tensor
    """(B, D), unit length, in the towers' compute dtype."""
    text_BD: Tensor
    """(B, D), unit length."""
    logit_scale: Tensor
    """(1,) float32: the multiplier exp(log_logit_scale), already clamped; carries the gradient to its parameter."""
    logit_bias: Tensor | None = None
    """(1,) float32, added to the scaled similarities (sigmoid loss), or None."""
