"""The G x G similarities of a global batch, cut into tiles, and the gradients that come back from them.

A rank has the rows of its own B images and all G = W B columns. Columns come in slices, as the exchange of texts brings
them (`clipx.losses.exchange`); inside a slice, rows are taken in turn. What happens in a tile is the loss's affair.

Shape suffixes: B local pairs, G global pairs, W ranks, R rows of a tile, N columns of a tile, D embedding, C ids of a
pair.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed import collectives
from clipx.losses.exchange import Columns, Exchange

NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How one rank's B x G similarities are cut, and which of them are positives or left out."""

    rank: int
    world_size: int
    batch_size: int
    """B."""
    tile_size: int
    """A tile has at most its square of similarities, and at most this many rows."""
    ids_G: Tensor | None = None
    """(G,), or (G, 2, C): those of the image and of the text of each pair (`clipx.losses.ContrastiveLoss`)."""
    positive_ids_G: Tensor | None = None
    """Both as `dense_ids`."""

    @property
    def global_batch_size(self) -> int:
        """G."""
        return self.batch_size * self.world_size

    def for_kernels(self, factor: int, device: torch.device) -> Self:
        """The same grid with tiles `factor` squared times as large, and with ids even where none were given.

        Positives are never left out, so that their ids taken once more leave out nothing; nor do ids that all differ.
        """
        ids_G = self.positive_ids_G if self.ids_G is None else self.ids_G
        if ids_G is None:
            ids_G = torch.arange(self.global_batch_size, dtype=torch.int32, device=device)
        return replace(self, tile_size=factor * self.tile_size, ids_G=ids_G)

    def row_slices(self, num_columns: int) -> Iterator[slice]:
        """Ranges of this rank's B images."""
        size = min(self.tile_size, max(1, self.tile_size**2 // num_columns))
        return (slice(start, min(start + size, self.batch_size)) for start in range(0, self.batch_size, size))

    def by_owner(self, x_G: Tensor) -> Tensor:
        """(G, ...) as a view (W, B, ...)."""
        return x_G.unflatten(0, (self.world_size, self.batch_size))

    def local(self, x_G: Tensor) -> Tensor:
        """This rank's part (B, ...) of (G, ...), a view."""
        return self.by_owner(x_G)[self.rank]

    def take(self, x_G: Tensor, columns: Columns) -> Tensor:
        """The columns' part (N, ...) of (G, ...)."""
        return self.by_owner(x_G)[columns.owners, columns.places].flatten(0, 1)


@dataclass(frozen=True)
class Tile:
    """Similarities of some of this rank's images with some texts."""

    grid: Grid
    rows: slice
    columns: Columns

    @property
    def pair_column(self) -> int:
        """Column of the tile where the pairs' diagonal meets its row 0; may lie outside of the tile, on either side.

        Image i and text i of one pair meet on a diagonal of the tile. Here 2 ranks have 4 pairs each, this is rank 1,
        and the slice of columns holds places 0 and 1 of both owners:

                       owner 0   owner 1
                       0    1    0    1
            rows  0    .    .    *    .        rows 0 to 3: pair_column = (1 - 0) * 2 - 0 + 0 = 2
                  1    .    .    .    *        rows 2 to 3: pair_column = 4, outside; pair_rows is empty
        """
        owner = self.grid.rank - self.columns.owners.start
        return owner * self.columns.num_places - self.columns.places.start + self.rows.start

    @property
    def pair_rows(self) -> slice:
        """Rows of the tile whose own text is in it too."""
        if not self.columns.owners.start <= self.grid.rank < self.columns.owners.stop:
            return slice(0, 0)
        first = max(self.rows.start, self.columns.places.start) - self.rows.start
        return slice(first, max(first, min(self.rows.stop, self.columns.places.stop) - self.rows.start))

    def pairs(self, x_RN: Tensor) -> Tensor:
        """The entries of image and text of one pair, in the order of `pair_rows`: a view that can be written to."""
        rows = self.pair_rows
        return x_RN[rows, self.pair_column + rows.start : self.pair_column + rows.stop].diagonal()

    def positives(self) -> Tensor | None:
        """Bool (R, N), true where `positive_ids` agree; None means that only true pairs are positives."""
        if self.grid.positive_ids_G is None:
            return None
        ids_R, ids_N = self.ids(self.grid.positive_ids_G)
        return ids_R[:, None] == ids_N

    def left_out(self) -> Tensor | None:
        """Bool (R, N), true where any of the `ids` agree and the two are not positives; None means nowhere."""
        if self.grid.ids_G is None:
            return None
        first, *others = zip(*self.no_negative_ids(), strict=True)
        equal_RN = first[0][:, None] == first[1]
        for ids_R, ids_N in others:
            equal_RN |= ids_R[:, None] == ids_N
        positive_RN = self.positives()
        if positive_RN is not None:
            equal_RN &= ~positive_RN
        self.pairs(equal_RN).fill_(False)
        return equal_RN

    def fill_left_out(self, x_RN: Tensor, value: float) -> Tensor:
        """Writes `value` where similarities are left out; returns x."""
        left_out_RN = self.left_out()
        return x_RN if left_out_RN is None else x_RN.masked_fill_(left_out_RN, value)

    def ids(self, ids_G: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the rows (R,) and of the columns (N,)."""
        return self.grid.local(ids_G)[self.rows], self.grid.take(ids_G, self.columns)

    def no_negative_ids(self) -> tuple[Tensor, Tensor]:
        """Those of the rows' images (C, R) and of the columns' texts (C, N), contiguous, of a grid that has `ids`."""
        assert self.grid.ids_G is not None
        ids_R, ids_N = self.ids(self.grid.ids_G)
        if ids_R.dim() == 1:
            return ids_R[None], ids_N[None]
        return ids_R[:, 0].T.contiguous(), ids_N[:, 1].T.contiguous()


def make_grid(
    image_BD: Tensor,
    text_BD: Tensor,
    group: ProcessGroup | None,
    *,
    tile_size: int,
    ids_G: Tensor | None,
    positive_ids_G: Tensor | None,
) -> Grid:
    """The grid of this rank within its group; on CUDA, where launches cost as much as work, of tiles twice as wide."""
    assert image_BD.shape == text_BD.shape, f"images {tuple(image_BD.shape)}, texts {tuple(text_BD.shape)}"
    assert image_BD.dtype == text_BD.dtype, f"images {image_BD.dtype}, texts {text_BD.dtype}"
    return Grid(
        rank=collectives.rank(group),
        world_size=collectives.world_size(group),
        batch_size=len(image_BD),
        tile_size=2 * tile_size if image_BD.is_cuda else tile_size,
        ids_G=ids_G,
        positive_ids_G=positive_ids_G,
    )


def dense_ids(ids_G: Tensor) -> Tensor:
    """int32 numbers that are equal where the ids are: the place of each among the sorted ones; (..., C): by column."""
    if ids_G.dim() == 1:
        return torch.searchsorted(ids_G.sort().values, ids_G, out_int32=True)
    by_column = ids_G.movedim(-1, 0)
    flat = by_column.flatten(1).contiguous()
    return torch.searchsorted(flat.sort().values, flat, out_int32=True).view(by_column.shape).movedim(0, -1)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the loss's arithmetic: at least float32, float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def matmul_operand(x: Tensor) -> Tensor:
    """x as it enters matrix products: as it is on CUDA, which sums in float32; elsewhere in accumulation dtype."""
    return x if x.is_cuda else x.to(accumulation_dtype(x))


def grad_scale(x: Tensor) -> float:
    """What tile gradients are multiplied by before they become operands beside x: float16 ends at 6e-8."""
    return 4096.0 if x.dtype == torch.float16 else 1.0


def similarities(x_RD: Tensor, y_ND: Tensor, logit_scale: Tensor | float) -> Tensor:
    """S = s x y^T of two operands, in the accumulation dtype (R, N)."""
    if x_RD.dtype in NARROW:
        return torch.mm(x_RD, y_ND.T, out_dtype=torch.float32).mul_(logit_scale)
    return (x_RD * logit_scale) @ y_ND.T


def input_gradients(
    image_BD: Tensor,
    logit_scale: Tensor,
    exchange: Exchange,
    *,
    grid: Grid,
    loss_scale: Tensor | float,
    dtype: torch.dtype,
    tile_gradient: Callable[[Tensor, Tensor, Tile], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the loss, given its gradient with respect to S = s x y^T one tile at a time.

    Args:
        image_BD: x, this rank's images.
        logit_scale: s, (1,) in the accumulation dtype.
        exchange: brings the texts y, and text gradients to their owners.
        grid: how to cut.
        loss_scale: what to multiply all gradients by.
        dtype: dtype of dx and dy; the sums that lead to them have the accumulation dtype.
        tile_gradient: operands x (R, D), y (N, D) and their tile to grad_scale(x) g, (R, N).

    Returns:
        dx = loss_scale s g y (B, D); dy = loss_scale s g^T x (B, D) of this rank's own texts, from all ranks' images;
        ds (1,), the sum over this rank's images of <x_i, dx_i> / s, from the dx in the accumulation dtype.
    """
    if grad_scale(matmul_operand(image_BD)) != 1:
        loss_scale = loss_scale / grad_scale(matmul_operand(image_BD))
    direction_BD = torch.zeros_like(image_BD, dtype=logit_scale.dtype)  # g y, which also gives ds
    for columns, text_ND, dy_ND in exchange.backward():
        y_ND = matmul_operand(text_ND)
        for rows in grid.row_slices(len(columns)):
            x_RD = matmul_operand(image_BD[rows])
            g_RN = tile_gradient(x_RD, y_ND, Tile(grid, rows, columns)).to(x_RD.dtype)
            _add_product(direction_BD[rows], g_RN, y_ND)
            _add_product(dy_ND, g_RN.T, x_RD)
            del g_RN  # or it stood beside the next one
    ds = torch.linalg.vecdot(direction_BD, image_BD.to(direction_BD)).sum().mul(loss_scale).reshape(1)
    factor = logit_scale * loss_scale
    dx_BD = torch.mul(direction_BD, factor, out=torch.empty_like(direction_BD, dtype=dtype))
    del direction_BD
    dy_BD = exchange.text_gradient()
    return dx_BD, torch.mul(dy_BD, factor, out=torch.empty_like(dy_BD, dtype=dtype)), ds


def register_gradients(share: Any, backward: Any, *, num_tensors: int, num_sums: int) -> None:
    """Makes `backward` the gradient of a loss's operator, so that nothing of the tiles is kept between the two.

    Args:
        share: registered operator, whose first output is the share and whose last are sums; only the share has a
            gradient.
        backward: registered operator of the share's gradient, the sums and the inputs of `share`, to the gradients of
            its first three: images, texts and multiplier.
        num_tensors: how many of the inputs come first and are tensors, or None where they may be.
        num_sums: outputs that `backward` takes.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)  # or zeros of the sums' size were made
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[-num_sums:], *inputs[:num_tensors])
        ctx.settings = inputs[num_tensors:]

    def differentiate(ctx: Any, share_gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        rest = (None,) * (num_tensors + len(ctx.settings) - 3)
        if share_gradient is None:
            return (None, None, None, *rest)
        return *backward(share_gradient, *ctx.saved_tensors, *ctx.settings), *rest

    def fake(share_gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        of_inputs = inputs[num_sums : num_sums + 3]
        return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in of_inputs)

    share.register_autograd(differentiate, setup_context=save)
    backward.register_fake(fake)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a b to the total in the accumulation dtype, in place."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
