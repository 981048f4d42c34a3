"""What crosses borders: `Batch` from the data stream to the model, `Embeddings` from the towers to the loss.

The letters after the last underscore of a tensor's name are its axes, and the first one says how it is cut and joined:
B pairs of this rank (or micro-batch), I images of them, T tokens of B texts. A name without such letters is one value
for the whole batch. H x W pixels, C channels, D embedding.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

_AXES = "BIT"


def axis_of(name: str) -> str | None:
    """The axis along which a tensor of this name is cut and joined.

    Returns:
        B, I or T; None for one value of the whole batch (`image_BD`: B; `logit_scale`: None).
    """
    axes = name.rpartition("_")[2]
    return axes[0] if axes.isupper() and axes[0] in _AXES else None


def tensor_fields(record: type[Any]) -> frozenset[str]:
    """Names of a dataclass's fields that stand for tensors: those with an axis."""
    return frozenset(item.name for item in fields(record) if axis_of(item.name) is not None)


def tensors_of(record: Any) -> dict[str, Tensor]:
    """The fields of a dataclass that hold tensors, by name."""
    named = {item.name: getattr(record, item.name) for item in fields(record)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def join(pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of consecutive pieces, by name, joined along their axes; without an axis the first piece's counts."""
    return {
        name: tensor if axis_of(name) is None else torch.cat([piece[name] for piece in pieces])
        for name, tensor in pieces[0].items()
    }


def cut(tensors: Mapping[str, Tensor], sizes: Sequence[Mapping[str, int]]) -> list[dict[str, Tensor]]:
    """Consecutive pieces of tensors, by name, the inverse of `join`; what has no axis is the same in every piece.

    Args:
        tensors: by name, each with the length of its axis first.
        sizes: for each piece its length along B, I and T.
    """
    pieces: list[dict[str, Tensor]] = [{} for _ in sizes]
    for name, tensor in tensors.items():
        axis = axis_of(name)
        parts = [tensor] * len(sizes) if axis is None else tensor.split([size[axis] for size in sizes])
        for piece, part in zip(pieces, parts, strict=True):
            piece[name] = part
    return pieces


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
    """B image-text pairs of one rank, in the order of the global batch.

    Each image stands once and has `captions_per_image` texts, one after the other: I = B / captions_per_image.
    Texts are one flat array of real tokens, without padding: text i is `tokens[sum(lengths[:i]):][:lengths[i]]`.
    """

    index: int
    """Position of the global batch in the data order, from 0."""
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
    """int64 (I,), position in the global batch, 0 to G / captions_per_image - 1."""
    source_I: Tensor
    """int64 (I,), index of the data source."""
    augment_seed_I: Tensor | None = None
    """int64 (I,), for the augmentations that the device computes; None if there is nothing to augment."""
    group_id_B: Tensor | None = None
    """int64 (B,), equal where texts are, which are no negatives then; None means that only samples matter."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """What an objective has its readers add to every sample (`clipx.data.columns.ColumnReader`), by name with axes."""
    captions_per_image: int = 1
    bad: tuple[BadSample, ...] = field(default=())
    """Samples found bad while this part of the batch was read."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Figures counted while it was read, summed over ranks and steps for metrics.jsonl; the same names on all ranks."""
    read_wait_s: float = 0.0
    """Seconds that the loader processes waited for remote storage, summed."""

    def __len__(self) -> int:
        return self.lengths_B.shape[0]

    @property
    def sizes(self) -> dict[str, int]:
        """Its length along B, I and T."""
        return {"B": len(self), "I": self.slot_I.shape[0], "T": self.tokens_T.shape[0]}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, fields and columns alike."""
        return {**tensors_of(self), **self.columns}

    def with_tensors(self, tensors: Mapping[str, Tensor], **changes: Any) -> Self:
        """The same batch with these tensors, fields and columns alike, and other changed fields."""
        columns = {name: tensors.get(name, value) for name, value in self.columns.items()}
        own: dict[str, Any] = {name: value for name, value in tensors.items() if name not in columns}
        return replace(self, **own, columns=columns, **changes)

    def without_columns(self, names: Collection[str]) -> Self:
        """The same batch, these columns left out."""
        return replace(self, columns={name: value for name, value in self.columns.items() if name not in names})

    def to(self, device: torch.device) -> Self:
        """The same batch with every tensor on `device` (asynchronously if memory is pinned)."""
        return self.with_tensors({name: value.to(device, non_blocking=True) for name, value in self.tensors().items()})

    def pin_memory(self) -> Self:
        """The same batch, what is large in page-locked memory; what lies there already is not copied.

        Vectors stay: they go to the device together (`clipx.train.uploads`), and are put together there.
        """
        large = {name: value for name, value in self.tensors().items() if value.dim() > 1}
        return self.with_tensors({name: value.pin_memory() for name, value in large.items()})

    def first_image(self) -> Self:
        """The first image with its texts, which all have `max_length` tokens; reads no value."""
        texts = self.captions_per_image
        sizes = {"B": texts, "I": 1, "T": texts * self.max_length}
        return self.with_tensors({name: value[: sizes[axis_of(name) or "I"]] for name, value in self.tensors().items()})

    def micro_batches(self, size: int) -> list[Self]:
        """Consecutive pieces of `size` pairs; images stay with their captions, texts are cut at their borders.

        Bad samples, counts and waits stay with the whole batch.
        """
        if size >= len(self):
            return [self]
        sizes = [
            {"B": len(part_B), "I": len(part_B) // self.captions_per_image, "T": int(part_B.sum())}
            for part_B in self.lengths_B.split(size)
        ]
        return [self.with_tensors(piece, bad=(), counts={}, read_wait_s=0.0) for piece in cut(self.tensors(), sizes)]


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
