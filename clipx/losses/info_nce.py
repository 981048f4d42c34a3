"""InfoNCE over the global batch: exact, in tiles, from one gather of the texts.

The symmetric cross-entropy of CLIP (arXiv 2103.00020, figure 3), with several positives as in supervised contrastive
learning (arXiv 2004.11362, equation 2, the mean outside of the logarithm).

Shape suffixes: B local pairs, G global pairs, R rows and N columns of a tile, D embedding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from clipx.distributed import collectives
from clipx.losses.tiles import Grid, input_gradients, make_grid, wide
from clipx.types import Embeddings


class InfoNCELoss:
    """Cross-entropy of finding each image's text among all texts, and each text's image among all images, halved.

    With S = s x y^T over the G pairs, r_i = log sum_j exp S_ij and c_j = log sum_i exp S_ij,

        L = 1/G sum_i [ (r_i + c_i) / 2 - mean_{p in P(i)} S_ip ],

    where P(i) = {i}, or all pairs with i's positive id. Positives stay in the sums of r and c. Pairs of equal ids that
    are no positives are left out of both sums.

    Numerics: similarities and softmax in at least float32 (float64 for float64), whatever autocast says, with streaming
    maxima; gradients in that dtype, then cast to the embeddings' own. Memory: O(B D + G) and one slice of at most
    `tile_size` text gradients, beyond the gathered texts; no matrix larger than `tile_size` squared. Communication per
    rank: the texts once, gathered in their dtype; 2 all-reduces of G numbers; the text gradients once, reduce-scattered
    in at least float32, slice by slice.

    Args:
        tile_size: rows and columns of the largest block of similarities held at once.
    """

    def __init__(self, *, tile_size: int = 4096) -> None:
        self.tile_size = tile_size

    def __call__(
        self,
        embeddings: Embeddings,
        *,
        group: ProcessGroup | None = None,
        ids_B: Tensor | None = None,
        positive_ids_B: Tensor | None = None,
    ) -> Tensor:
        """This rank's share of the loss; see `clipx.losses.ContrastiveLoss`."""
        grid = make_grid(embeddings, tile_size=self.tile_size, group=group, ids_B=ids_B, positive_ids_B=positive_ids_B)
        share = _InfoNCE.apply(embeddings.image_BD, embeddings.text_BD, embeddings.logit_scale, grid, group)
        if embeddings.logit_bias is not None:
            # A bias of all logits cancels in a softmax. Its gradient is 0, which DDP wants to see.
            share = share + 0 * embeddings.logit_bias.sum()
        return share


class _InfoNCE(torch.autograd.Function):
    """(x, y, s) to the share, and the gradients of the global loss back, scaled by the incoming one."""

    @staticmethod
    def forward(
        ctx: Any, image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, grid: Grid, group: ProcessGroup | None
    ) -> Tensor:
        with torch.autocast(image_BD.device.type, enabled=False):
            text_GD = collectives.all_gather(text_BD, group)
            weight_G = _positive_weight(grid, wide(image_BD))
            row_lse_B, column_lse_G, positive_B = _statistics(image_BD, text_GD, logit_scale, grid, weight_G)
            _combine_over_ranks(column_lse_G, group)
            halves_B = (row_lse_B + grid.own(column_lse_G)) / 2
            share = (halves_B - positive_B).sum() / grid.global_batch_size
        ctx.save_for_backward(image_BD, text_GD, logit_scale, row_lse_B, column_lse_G, weight_G)
        ctx.grid, ctx.group = grid, group
        return share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, share_gradient: Tensor) -> tuple[Tensor | None, ...]:
        image_BD, text_GD, logit_scale, row_lse_B, column_lse_G, weight_G = ctx.saved_tensors
        grid: Grid = ctx.grid

        def tile_gradient(logits_RN: Tensor, rows: slice, columns: slice) -> Tensor:
            """g_ij = [exp(S_ij - r_i) + exp(S_ij - c_j)] / 2G - [j in P(i)] / (G |P(i)|)."""
            _leave_out(logits_RN, grid, rows, columns)
            by_column_RN = (logits_RN - grid.columns(column_lse_G, columns)).exp_()
            gradient_RN = logits_RN.sub_(row_lse_B[rows, None]).exp_().add_(by_column_RN).mul_(0.5)
            positive_RN = grid.positives(rows, columns)
            if positive_RN is None:
                grid.pairs(gradient_RN, rows, columns).sub_(1)
            else:
                gradient_RN.sub_(positive_RN * grid.own(weight_G)[rows, None])
            return gradient_RN.div_(grid.global_batch_size)

        with torch.autocast(image_BD.device.type, enabled=False):
            dx_BD, dy_BD, ds = input_gradients(
                image_BD,
                text_GD,
                logit_scale.to(wide(image_BD)),
                grid=grid,
                group=ctx.group,
                tile_gradient=tile_gradient,
            )
            gradients = [(gradient * share_gradient) for gradient in (dx_BD, dy_BD, ds)]
        dtypes = (image_BD.dtype, text_GD.dtype, logit_scale.dtype)
        return *(gradient.to(dtype) for gradient, dtype in zip(gradients, dtypes, strict=True)), None, None


def _statistics(
    image_BD: Tensor, text_GD: Tensor, logit_scale: Tensor, grid: Grid, weight_G: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the tiles.

    Returns:
        r (B,); log sum exp of every column over this rank's rows alone (G,); mean similarity to the positives (B,).
    """
    dtype = wide(image_BD)
    scale = logit_scale.to(dtype)
    row_lse_B = image_BD.new_full((grid.batch_size,), -torch.inf, dtype=dtype)
    column_lse_G = image_BD.new_empty((grid.global_batch_size,), dtype=dtype)
    positive_B = torch.zeros_like(row_lse_B)
    for columns in grid.column_slices():
        y_ND = grid.columns(text_GD, columns).to(dtype)
        column_lse_N = image_BD.new_full((len(y_ND),), -torch.inf, dtype=dtype)
        for rows in grid.row_slices(len(y_ND)):
            logits_RN = (image_BD[rows].to(dtype) * scale) @ y_ND.T
            _leave_out(logits_RN, grid, rows, columns)
            row_lse_B[rows] = torch.logaddexp(row_lse_B[rows], logits_RN.logsumexp(1))
            column_lse_N = torch.logaddexp(column_lse_N, logits_RN.logsumexp(0))
            positive_RN = grid.positives(rows, columns)
            if positive_RN is None or weight_G is None:
                positive_B[grid.pair_rows(rows, columns)] = grid.pairs(logits_RN, rows, columns)
            else:
                positive_B[rows] += logits_RN.masked_fill_(~positive_RN, 0).sum(1) * grid.own(weight_G)[rows]
        grid.by_owner(column_lse_G)[:, columns] = column_lse_N.unflatten(0, (grid.world_size, -1))
    return row_lse_B, column_lse_G, positive_B


def _leave_out(logits_RN: Tensor, grid: Grid, rows: slice, columns: slice) -> None:
    left_out_RN = grid.left_out(rows, columns)
    if left_out_RN is not None:
        logits_RN.masked_fill_(left_out_RN, -torch.inf)


def _combine_over_ranks(column_lse_G: Tensor, group: ProcessGroup | None) -> None:
    """Turns each rank's partial log sum exp into that of all ranks, in place."""
    if group is None:
        return
    # Finite even where this rank leaves out the whole column, since on some rank the column has its own image.
    largest_G = collectives.all_reduce(column_lse_G.clone(), "max", group)
    column_lse_G.sub_(largest_G).exp_()
    collectives.all_reduce(column_lse_G, "sum", group).log_().add_(largest_G)


def _positive_weight(grid: Grid, dtype: torch.dtype) -> Tensor | None:
    """1 / |P(i)| of every pair (G,); counted by sorting, so that the host never waits for the device."""
    if grid.positive_ids_G is None:
        return None
    sorted_G = grid.positive_ids_G.sort().values
    first_G = torch.searchsorted(sorted_G, grid.positive_ids_G)
    last_G = torch.searchsorted(sorted_G, grid.positive_ids_G, right=True)
    return (last_G - first_G).to(dtype).reciprocal()
