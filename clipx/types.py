"""What crosses borders: `Batch` from the data stream to the towers, `Embeddings` from the towers to the loss.

Shape suffixes: B pairs of this rank (or micro-batch), H x W pixels, C channels, D embedding, T tokens of B texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read as a pair, and why; a later good sample of its lane took its place."""

    shard: str
    key: str
    reason: str
    sample_id: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B image-text pairs of one rank, ordered by slot.

    Texts are one flat array of real tokens, without padding: text i is `tokens[sum(lengths[:i]):][:lengths[i]]`.
    """

    index: int
    """Place of the global batch in the data order, from 0."""
    images_BHWC: Tensor
    """uint8 (B, H, W, 3), RGB."""
    tokens_T: Tensor
    """int64 (T,), T = lengths.sum()."""
    lengths_B: Tensor
    """int64 (B,), tokens of each text with its start and end tokens."""
    max_length: int
    """An upper bound of `lengths_B` known on the host, so that padding never waits for the device."""
    sample_id_B: Tensor
    """int64 (B,), names the sample within the run; equal ids in a batch are not each other's negatives."""
    slot_B: Tensor
    """int64 (B,), place in the global batch, 0 to G-1."""
    source_B: Tensor
    """int64 (B,), index of the data source."""
    bad: tuple[BadSample, ...] = field(default=())
    """Samples found bad while this part of the batch was read."""

    def __len__(self) -> int:
        return self.slot_B.shape[0]

    def to(self, device: torch.device) -> Self:
        """The same batch with every tensor on `device` (asynchronously where memory is pinned)."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self._tensors().items()}
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; called by torch's DataLoader."""
        return replace(self, **{name: value.pin_memory() for name, value in self._tensors().items()})

    def micro_batches(self, size: int) -> list["Batch"]:
        """Consecutive pieces of `size` pairs; texts are cut at their borders."""
        if size >= len(self):
            return [self]
        token_counts = [int(part.sum()) for part in self.lengths_B.split(size)]
        pieces = {name: value.split(size) for name, value in self._tensors().items() if name != "tokens_T"}
        pieces["tokens_T"] = self.tokens_T.split(token_counts)
        number = len(token_counts)
        return [replace(self, **{name: parts[i] for name, parts in pieces.items()}, bad=()) for i in range(number)]

    @staticmethod
    def concatenate(parts: Sequence["Batch"]) -> "Batch":
        """One batch of the parts in their order (parts of the same global batch)."""
        assert len({part.index for part in parts}) == 1, "parts of different batches"
        if len(parts) == 1:
            return parts[0]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0]._tensors()
        }
        return replace(
            parts[0],
            **joined,
            max_length=max(part.max_length for part in parts),
            bad=tuple(bad for part in parts for bad in part.bad),
        )

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
