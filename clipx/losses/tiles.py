"""The G x G similarities of a global batch, cut into tiles, and the gradients that come back from them.

A rank has the rows of its own B images and all G = W B columns. Columns are taken in slices: the same range of every
owner's texts, so that a slice's text gradient can be reduce-scattered as soon as it is complete, and no G x D float32
buffer ever stands. Inside a slice, rows are taken in turn.

Shape suffixes: B local pairs, G global pairs, W ranks, R rows of a tile, N columns of a tile, D embedding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed import collectives
from clipx.types import Embeddings


@dataclass(frozen=True)
class Grid:
    """How one rank's B x G similarities are cut, and which of them are positives or left out."""

    rank: int
    world_size: int
    batch_size: int
    """B."""
    tile_size: int
    """Rows and columns of the largest tile (with more ranks than this: one column of each, and fewer rows)."""
    ids_G: Tensor | None
    positive_ids_G: Tensor | None

    @property
    def global_batch_size(self) -> int:
        """G."""
        return self.batch_size * self.world_size

    def column_slices(self) -> Iterator[slice]:
        """Ranges of every owner's B texts; taken of all W owners they are at most `tile_size` columns."""
        return _slices(self.batch_size, max(1, self.tile_size // self.world_size))

    def row_slices(self, num_columns: int) -> Iterator[slice]:
        """Ranges of this rank's B images."""
        return _slices(self.batch_size, min(self.tile_size, max(1, self.tile_size**2 // num_columns)))

    def columns(self, x_G: Tensor, columns: slice) -> Tensor:
        """The slice of every owner's part of (G, ...): (N, ...), owner by owner."""
        return self.by_owner(x_G)[:, columns].flatten(0, 1)

    def by_owner(self, x_G: Tensor) -> Tensor:
        """(G, ...) as a view (W, B, ...)."""
        return x_G.unflatten(0, (self.world_size, self.batch_size))

    def own(self, x_G: Tensor) -> Tensor:
        """This rank's part (B, ...) of (G, ...), a view."""
        return self.by_owner(x_G)[self.rank]

    def pair_rows(self, rows: slice, columns: slice) -> slice:
        """The local pairs whose image and text are both in the tile."""
        first = max(rows.start, columns.start)
        return slice(first, max(first, min(rows.stop, columns.stop)))

    def pairs(self, tile_RN: Tensor, rows: slice, columns: slice) -> Tensor:
        """The tile's entries of `pair_rows`, image and text of one pair: a view that can be written to."""
        both = self.pair_rows(rows, columns)
        first_column = self.rank * (columns.stop - columns.start) - columns.start
        return tile_RN[
            both.start - rows.start : both.stop - rows.start, first_column + both.start : first_column + both.stop
        ].diagonal()

    def positives(self, rows: slice, columns: slice) -> Tensor | None:
        """Bool (R, N), true where `positive_ids` agree; none: only true pairs are positives."""
        return None if self.positive_ids_G is None else self._equal(self.positive_ids_G, rows, columns)

    def left_out(self, rows: slice, columns: slice) -> Tensor | None:
        """Bool (R, N), true where `ids` agree and the two are not positives; none: nowhere."""
        if self.ids_G is None:
            return None
        equal_RN = self._equal(self.ids_G, rows, columns)
        positive_RN = self.positives(rows, columns)
        if positive_RN is not None:
            equal_RN &= ~positive_RN
        self.pairs(equal_RN, rows, columns).fill_(False)
        return equal_RN

    def _equal(self, ids_G: Tensor, rows: slice, columns: slice) -> Tensor:
        return self.own(ids_G)[rows, None] == self.columns(ids_G, columns)


def make_grid(
    embeddings: Embeddings,
    *,
    tile_size: int,
    group: ProcessGroup | None,
    ids_B: Tensor | None,
    positive_ids_B: Tensor | None,
) -> Grid:
    """The grid of this rank's embeddings; gathers the ids (8 G bytes each)."""
    image_BD, text_BD = embeddings.image_BD, embeddings.text_BD
    assert image_BD.shape == text_BD.shape, f"images {tuple(image_BD.shape)}, texts {tuple(text_BD.shape)}"
    return Grid(
        rank=collectives.rank(group),
        world_size=collectives.world_size(group),
        batch_size=image_BD.shape[0],
        tile_size=tile_size,
        ids_G=None if ids_B is None else collectives.all_gather(ids_B, group),
        positive_ids_G=None if positive_ids_B is None else collectives.all_gather(positive_ids_B, group),
    )


def wide(x: Tensor) -> torch.dtype:
    """The dtype of the loss's arithmetic: at least float32, float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def input_gradients(
    image_BD: Tensor,
    text_GD: Tensor,
    logit_scale: Tensor,
    *,
    grid: Grid,
    group: ProcessGroup | None,
    tile_gradient: Callable[[Tensor, slice, slice], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the global loss, given its gradient with respect to S = s x y^T one tile at a time.

    Args:
        image_BD: x, this rank's images.
        text_GD: y, all texts.
        logit_scale: s, (1,) in the wide dtype.
        grid: how to cut.
        group: the ranks; text gradients are summed over them in the wide dtype.
        tile_gradient: (S_RN, rows, columns) to dL/dS (R, N); may overwrite S.

    Returns:
        dx (B, D); dy (B, D) of this rank's own texts, from all ranks' images; ds (1,), from this rank's images alone:
        the sum over i of <x_i, dx_i> / s. All in the wide dtype.
    """
    dtype = logit_scale.dtype
    direction_BD = image_BD.new_zeros(image_BD.shape, dtype=dtype)  # dx / s, which also gives ds
    text_gradient_BD = torch.empty_like(direction_BD)
    for columns in grid.column_slices():
        y_ND = grid.columns(text_GD, columns).to(dtype)
        dy_ND = torch.zeros_like(y_ND)
        for rows in grid.row_slices(len(y_ND)):
            sx_RD = image_BD[rows].to(dtype) * logit_scale
            gradient_RN = tile_gradient(sx_RD @ y_ND.T, rows, columns)
            direction_BD[rows].addmm_(gradient_RN, y_ND)
            dy_ND.addmm_(gradient_RN.T, sx_RD)
        text_gradient_BD[columns] = collectives.reduce_scatter_sum(dy_ND, group)
    scale_gradient = torch.linalg.vecdot(direction_BD, image_BD.to(dtype)).sum().reshape(1)
    return direction_BD.mul_(logit_scale), text_gradient_BD, scale_gradient


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
