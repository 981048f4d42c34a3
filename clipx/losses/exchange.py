"""How texts reach every rank, and text gradients their owners: gathered at once, or rank by rank in a ring.

Both bring the texts in slices of columns. Going back, whoever takes a slice adds to the gradient that comes with it,
and the exchange sums these over all ranks, in the accumulation dtype, and in an order that is always the same.

- `Gathered` holds all texts (G x D, in the towers' dtype). A slice is the same range of every owner's texts, so that
  its gradient is reduce-scattered as soon as it is complete, and no G x D float32 buffer ever stands. Moves
  2 (W-1) B D elements per rank and step.
- `Ring` holds its own texts and the next ones under way: memory O(B D), for G x D that does not fit. The gradient goes
  round with its texts. Moves W B D elements more for InfoNCE, whose backward pass needs the texts again, and B D for
  the sigmoid loss, which has one pass. Alone (W = 1) nothing moves.

Shape suffixes: B local pairs, G global pairs, W ranks, N columns of a slice, D embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed import collectives


@dataclass(frozen=True)
class Columns:
    """The texts at `places` of every owner in `owners` (ranks), owner by owner."""

    owners: slice
    places: slice

    @property
    def num_places(self) -> int:
        """Texts of each owner."""
        return self.places.stop - self.places.start

    def __len__(self) -> int:
        return (self.owners.stop - self.owners.start) * self.num_places


class Exchange(Protocol):
    """Brings all texts once going forward, and once more going back."""

    _gradient_BD: Tensor

    def forward(self) -> Iterator[tuple[Columns, Tensor]]:
        """Slices of columns with their texts (N, D)."""

    def backward(self) -> Iterator[tuple[Columns, Tensor, Tensor]]:
        """Slices of columns with their texts (N, D) and the buffer (N, D) for their gradient, in accumulation dtype."""

    def text_gradient(self) -> Tensor:
        """This rank's text gradient (B, D), summed over ranks, in accumulation dtype; after `backward` is exhausted."""
        return self._gradient_BD


class Gathered(Exchange):
    """All texts at hand on every rank.

    Args:
        text_GD: from `all_gather`.
        slice_size: columns of a slice at most (with more ranks than this: one column of each).
        group: the ranks.
    """

    def __init__(self, text_GD: Tensor, *, slice_size: int, group: ProcessGroup) -> None:
        self._group = group
        self._by_owner = text_GD.unflatten(0, (collectives.world_size(group), -1))
        self._slice_size = slice_size

    def forward(self) -> Iterator[tuple[Columns, Tensor]]:
        """See `Exchange`."""
        world_size, batch_size, _ = self._by_owner.shape
        for places in _slices(batch_size, max(1, self._slice_size // world_size)):
            yield Columns(slice(0, world_size), places), self._by_owner[:, places].flatten(0, 1)

    def backward(self) -> Iterator[tuple[Columns, Tensor, Tensor]]:
        """See `Exchange`."""
        self._gradient_BD = _accumulator(self._by_owner[0])
        for columns, text_ND in self.forward():
            gradient_ND = _accumulator(text_ND)
            yield columns, text_ND, gradient_ND
            self._gradient_BD[columns.places] = collectives.reduce_scatter_sum(gradient_ND, self._group)


class Ring(Exchange):
    """Every rank's texts pass by, beginning with one's own and those of the rank before.

    Args:
        text_BD: this rank's texts.
        slice_size: columns of a slice at most.
        group: the ranks; None means this process alone.
    """

    def __init__(self, text_BD: Tensor, *, slice_size: int, group: ProcessGroup | None) -> None:
        self._group = group
        self._text_BD = text_BD
        self._slice_size = slice_size

    def forward(self) -> Iterator[tuple[Columns, Tensor]]:
        """See `Exchange`."""
        rank, world_size = collectives.rank(self._group), collectives.world_size(self._group)
        text_BD = self._text_BD
        for step in range(world_size):
            is_last = step == world_size - 1
            # The next block travels while this one is used.
            arrival = None if is_last else collectives.ring_shift_async(text_BD, self._group)
            owner = (rank - step) % world_size
            for places in _slices(len(text_BD), self._slice_size):
                yield Columns(slice(owner, owner + 1), places), text_BD[places]
            if arrival is not None:
                text_BD = arrival()

    def backward(self) -> Iterator[tuple[Columns, Tensor, Tensor]]:
        """See `Exchange`."""
        self._gradient_BD = _accumulator(self._text_BD)
        for columns, text_ND in self.forward():
            yield columns, text_ND, self._gradient_BD[columns.places]
            if columns.places.stop == len(self._text_BD):
                # Goes where its texts go; after the last of W steps that is home.
                self._gradient_BD = collectives.ring_shift_async(self._gradient_BD, self._group)()


class Accompanied(Exchange):
    """An exchange of texts, slice by slice beside another one, whose rows have no gradient (a teacher's).

    Args:
        texts: of the student.
        companion: of what comes along, cut alike: the same kind of exchange, with the same size of slices.
    """

    beside_NE: Tensor
    """Rows of the companion for the slice that was given last."""

    def __init__(self, texts: Exchange, companion: Exchange) -> None:
        self._texts = texts
        self._companion = companion

    def forward(self) -> Iterator[tuple[Columns, Tensor]]:
        """See `Exchange`."""
        for (columns, text_ND), beside in zip(self._texts.forward(), self._companion.forward(), strict=True):
            self.beside_NE = beside[1]
            yield columns, text_ND

    def backward(self) -> Iterator[tuple[Columns, Tensor, Tensor]]:
        """See `Exchange`."""
        for texts, beside in zip(self._texts.backward(), self._companion.forward(), strict=True):
            self.beside_NE = beside[1]
            yield texts
        self._gradient_BD = self._texts.text_gradient()


def make_exchange(text_BD: Tensor, text_GD: Tensor | None, *, slice_size: int, group: ProcessGroup | None) -> Exchange:
    """Over the gathered texts where there are any, else round the ring."""
    if text_GD is None or group is None:
        return Ring(text_BD, slice_size=slice_size, group=group)
    return Gathered(text_GD, slice_size=slice_size, group=group)


@torch.library.custom_op("clipx::all_gather", mutates_args=())
def _all_gather(x: Tensor, group_name: str) -> Tensor:
    return collectives.all_gather(x, collectives.named_group(group_name))


@_all_gather.register_fake
def _(x: Tensor, group_name: str) -> Tensor:
    world_size = collectives.world_size(collectives.named_group(group_name))
    return x.new_empty((world_size * x.shape[0], *x.shape[1:]))


def all_gather(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """All ranks' x, along the first dimension, without gradient; usable under torch.compile; alone, x itself."""
    return x.detach() if group is None else _all_gather(x.detach(), group.group_name)


def _accumulator(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
