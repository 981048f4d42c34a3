"""InfoNCE over the global batch: exact, in tiles, from one exchange of the texts.

The symmetric cross-entropy of CLIP (arXiv 2103.00020, figure 3), with several positives as in supervised contrastive
learning (arXiv 2004.11362, equation 2, the mean outside of the logarithm).

Shape suffixes: B local pairs, G global pairs, R rows and N columns of a tile, D embedding.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed import collectives
from clipx.losses.backend import use_kernels
from clipx.losses.cost import LossCost, LossShape, column_sums, tiled_cost
from clipx.losses.exchange import Exchange, make_exchange
from clipx.losses.tiled_loss import TiledLoss
from clipx.losses.tiles import (
    Grid,
    Tile,
    accumulation_dtype,
    grad_scale,
    input_gradients,
    make_grid,
    matmul_operand,
    register_gradients,
    similarities,
)
from clipx.types import Embeddings


class InfoNCELoss(TiledLoss):
    """Cross-entropy of finding each image's text among all texts, and each text's image among all images, halved.

    With S = s x y^T over the G pairs, r_i = log sum_j exp S_ij and c_j = log sum_i exp S_ij,

        L = 1/G sum_i [ (r_i + c_i) / 2 - mean_{p in P(i)} S_ip ],

    where P(i) = {i}, or all pairs with i's positive id. Positives stay in the sums of r and c. Pairs of equal ids that
    are no positives are left out of both sums. The gradient with respect to S, recomputed tile by tile,

        g_ij = 1/G ( [exp(S_ij - r_i) + exp(S_ij - c_j)] / 2 - [j in P(i)] / |P(i)| ),

    gives dx = s g y, dy = s g^T x and ds = sum_i <x_i, dx_i> / s. 8 B G D floating-point operations in all.

    Numerics: similarities and softmax in at least float32 (float64 for float64), whatever autocast says, with streaming
    maxima; gradients summed in that dtype, then cast to the embeddings' own. On CUDA, bfloat16 and float16 enter matrix
    products as they are, g rounded to their dtype once it is complete; elsewhere they are widened first. Deterministic.
    float32 is multiplied as float32; torch's own products take TF32 where torch was told to, which clipx never does.
    Memory: O(B D + G) and a few tiles beyond the gathered texts. Communication per rank: `clipx.losses.exchange`, and
    2 all-reduces of G numbers.
    """

    def __call__(
        self,
        embeddings: Embeddings,
        *,
        group: ProcessGroup | None = None,
        ids_B: Tensor | None = None,
        positive_ids_B: Tensor | None = None,
    ) -> Tensor:
        """This rank's share of the loss; see `clipx.losses.ContrastiveLoss`."""
        share, _, _ = _info_nce(
            embeddings.image_BD,
            embeddings.text_BD,
            embeddings.logit_scale,
            *self.operands(embeddings.text_BD, group, ids_B, positive_ids_B),
        )
        if embeddings.logit_bias is not None:
            # A bias of all logits cancels in a softmax. Its gradient is 0, which DDP wants to see.
            share = share + 0 * embeddings.logit_bias.sum()
        return share

    def cost(self, shape: LossShape) -> LossCost:
        """Four products of B x G x D: similarities going forward, again going back, and two gradients."""
        cost = tiled_cost(
            shape,
            num_products=4,
            num_passes=2,
            exchange=self.exchange,
            implementation=self.implementation,
        )
        return replace(cost, transfers=(*cost.transfers, column_sums(shape)))


# Registered operators, so that a compiled caller sees one node and goes on. They take plain values only, hence so many.


@torch.library.custom_op("clipx::info_nce", mutates_args=())
def _info_nce(  # noqa: PLR0913, PLR0917
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    text_GD: Tensor | None,
    ids_G: Tensor | None,
    positive_ids_G: Tensor | None,
    group_name: str,
    implementation: str,
    tile_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The share; r (B,); c (G,)."""
    group = collectives.named_group(group_name)
    grid = make_grid(image_BD, text_BD, group, tile_size=tile_size, ids_G=ids_G, positive_ids_G=positive_ids_G)
    tile_statistics = _tile_statistics
    if use_kernels(implementation, image_BD, several_positives=positive_ids_G is not None):
        from clipx.losses.triton_ops import info_nce_statistics as tile_statistics

        grid = grid.for_kernels(4, image_BD.device)  # a kernel leaves 1/8 byte per similarity, of its rows and columns
    weight_B = _positive_weight(grid, accumulation_dtype(image_BD))
    exchange = make_exchange(text_BD, text_GD, slice_size=grid.tile_size, group=group)
    with torch.autocast(image_BD.device.type, enabled=False):
        row_lse_B, column_lse_G, positive_B = _statistics(
            image_BD, logit_scale, exchange, grid, partial(tile_statistics, weight_B=weight_B)
        )
        _combine_over_ranks(column_lse_G, group)
        halves_B = (row_lse_B + grid.local(column_lse_G)) / 2
        share = (halves_B - positive_B).sum() / grid.global_batch_size
    return share, row_lse_B, column_lse_G


@_info_nce.register_fake
def _(image_BD: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    world_size = collectives.world_size(collectives.named_group(others[-3]))
    r_B = image_BD.new_empty(len(image_BD), dtype=accumulation_dtype(image_BD))
    return r_B.new_empty(()), r_B, r_B.new_empty(world_size * len(image_BD))


@torch.library.custom_op("clipx::info_nce_backward", mutates_args=())
def _info_nce_backward(  # noqa: PLR0913, PLR0917
    share_gradient: Tensor,
    row_lse_B: Tensor,
    column_lse_G: Tensor,
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    text_GD: Tensor | None,
    ids_G: Tensor | None,
    positive_ids_G: Tensor | None,
    group_name: str,
    implementation: str,
    tile_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for image_BD, text_BD and logit_scale."""
    group = collectives.named_group(group_name)
    grid = make_grid(image_BD, text_BD, group, tile_size=tile_size, ids_G=ids_G, positive_ids_G=positive_ids_G)
    scale = logit_scale.to(accumulation_dtype(image_BD))
    slice_size = 2 * grid.tile_size  # the same for torch and kernels: ranks agree though kernels fail on one
    tile_gradient = _tile_gradient
    if use_kernels(implementation, image_BD, several_positives=positive_ids_G is not None):
        from clipx.losses.triton_ops import info_nce_gradient as tile_gradient

        grid = grid.for_kernels(2, image_BD.device)  # a kernel leaves g and nothing else
    weight_B = _positive_weight(grid, scale.dtype)

    def gradient(x_RD: Tensor, y_ND: Tensor, tile: Tile) -> Tensor:
        column_lse_N = grid.take(column_lse_G, tile.columns)
        lse = {"row_lse_R": row_lse_B[tile.rows], "column_lse_N": column_lse_N}
        return tile_gradient(x_RD, y_ND, scale, tile, weight_B=weight_B, **lse)

    with torch.autocast(image_BD.device.type, enabled=False):
        dx_BD, dy_BD, ds = input_gradients(
            image_BD,
            scale,
            make_exchange(text_BD, text_GD, slice_size=slice_size, group=group),
            grid=grid,
            loss_scale=share_gradient / grid.global_batch_size,
            dtype=image_BD.dtype,
            tile_gradient=gradient,
        )
    return dx_BD, dy_BD, ds.to(logit_scale.dtype)


register_gradients(_info_nce, _info_nce_backward, num_tensors=6, num_sums=2)


def _statistics(
    image_BD: Tensor,
    logit_scale: Tensor,
    exchange: Exchange,
    grid: Grid,
    tile_statistics: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the tiles.

    Returns:
        r (B,); log sum exp of every column over this rank's rows alone (G,); mean similarity to the positives (B,).
    """
    scale = logit_scale.to(accumulation_dtype(image_BD))
    column_lse_G = scale.new_empty((grid.global_batch_size,))
    of_rows: list[tuple[Tensor, Tensor]] = []
    for columns, text_ND in exchange.forward():
        y_ND = matmul_operand(text_ND)
        rows_R, columns_N, positives_R = zip(
            *(
                tile_statistics(matmul_operand(image_BD[rows]), y_ND, scale, Tile(grid, rows, columns))
                for rows in grid.row_slices(len(columns))
            ),
            strict=True,
        )
        of_rows.append((torch.cat(rows_R), torch.cat(positives_R)))
        by_owner = reduce(torch.logaddexp, columns_N).unflatten(0, (-1, columns.num_places))
        grid.by_owner(column_lse_G)[columns.owners, columns.places] = by_owner
    row_lse_B, positive_B = of_rows[0]
    for other_lse_B, other_positive_B in of_rows[1:]:
        row_lse_B, positive_B = torch.logaddexp(row_lse_B, other_lse_B), positive_B + other_positive_B
    return row_lse_B, column_lse_G, positive_B


def _tile_statistics(
    x_RD: Tensor, y_ND: Tensor, logit_scale: Tensor, tile: Tile, *, weight_B: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log sum exp of the tile's rows (R,) and columns (N,); the positives' part in the mean over each row's (R,)."""
    logits_RN = similarities(x_RD, y_ND, logit_scale)
    positive_RN = tile.positives()
    if positive_RN is None or weight_B is None:
        positive_R = logits_RN.new_zeros(len(x_RD))
        positive_R[tile.pair_rows] = tile.pairs(logits_RN)
    else:
        positive_R = logits_RN.where(positive_RN, 0).sum(1) * weight_B[tile.rows]
    tile.fill_left_out(logits_RN, -torch.inf)
    return _lse(logits_RN.clone(), 1), _lse(logits_RN, 0), positive_R


def _lse(logits_RN: Tensor, dim: int) -> Tensor:
    """log sum exp along `dim`, using up its argument; -inf where all is left out."""
    largest = logits_RN.amax(dim, keepdim=True).clamp_(min=torch.finfo(logits_RN.dtype).min)  # -inf - -inf is no number
    return logits_RN.sub_(largest).exp_().sum(dim).log_().add_(largest.squeeze(dim))


def _tile_gradient(
    x_RD: Tensor,
    y_ND: Tensor,
    logit_scale: Tensor,
    tile: Tile,
    *,
    row_lse_R: Tensor,
    column_lse_N: Tensor,
    weight_B: Tensor | None,
) -> Tensor:
    """grad_scale(x) G g_ij (R, N)."""
    logits_RN = tile.fill_left_out(similarities(x_RD, y_ND, logit_scale), -torch.inf)
    factor = grad_scale(x_RD)
    halved = math.log(2 / factor)  # the factor 1/2 within the exponent spares a pass over the tile
    by_column_RN = (logits_RN - (column_lse_N + halved)).exp_()
    gradient_RN = logits_RN.sub_(row_lse_R[:, None] + halved).exp_().add_(by_column_RN)
    positive_RN = tile.positives()
    if positive_RN is None or weight_B is None:
        tile.pairs(gradient_RN).sub_(factor)
        return gradient_RN
    return gradient_RN.sub_(positive_RN * (factor * weight_B[tile.rows, None]))


def _combine_over_ranks(column_lse_G: Tensor, group: ProcessGroup | None) -> None:
    """Turns each rank's partial log sum exp into that of all ranks, in place."""
    if group is None:
        return
    # Finite even where this rank leaves out the whole column, since on some rank the column has its own image.
    largest_G = collectives.all_reduce(column_lse_G.clone(), "max", group)
    column_lse_G.sub_(largest_G).exp_()
    collectives.all_reduce(column_lse_G, "sum", group).log_().add_(largest_G)


def _positive_weight(grid: Grid, dtype: torch.dtype) -> Tensor | None:
    """1 / |P(i)| of this rank's pairs (B,); counted by sorting, so that the host never waits for the device."""
    if grid.positive_ids_G is None:
        return None
    own_B = grid.local(grid.positive_ids_G)
    sorted_G = grid.positive_ids_G.sort().values
    first_B = torch.searchsorted(sorted_G, own_B)
    last_B = torch.searchsorted(sorted_G, own_B, right=True)
    return (last_B - first_B).to(dtype).reciprocal()
