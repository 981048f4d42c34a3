"""Pairwise sigmoid loss (SigLIP, arXiv 2303.15343, equation 1) over the global batch, in tiles.

Shape suffixes: B local pairs, G global pairs, R rows and N columns of a tile, D embedding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn import functional

from clipx.distributed import collectives
from clipx.losses.tiles import Grid, input_gradients, make_grid, wide
from clipx.types import Embeddings


class SigmoidLoss:
    """Each image with each text as a binary decision: the positives yes, all others no.

        L = -1/G sum_ij log sigmoid(z_ij (s x_i . y_j + b)),   z_ij = 1 for positives, -1 for negatives.

    Pairs of equal ids that are no positives are left out of the sum. Numerics, memory and communication as
    `InfoNCELoss`, without its all-reduces.

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
        """This rank's share; see `clipx.losses.ContrastiveLoss`. The embeddings must have a `logit_bias`."""
        assert embeddings.logit_bias is not None, "the sigmoid loss needs model.init_logit_bias"
        grid = make_grid(embeddings, tile_size=self.tile_size, group=group, ids_B=ids_B, positive_ids_B=positive_ids_B)
        scale, bias = embeddings.logit_scale, embeddings.logit_bias
        return _Sigmoid.apply(embeddings.image_BD, embeddings.text_BD, scale, bias, grid, group)


class _Sigmoid(torch.autograd.Function):
    """(x, y, s, b) to the share, and the gradients of the global loss back, scaled by the incoming one."""

    @staticmethod
    def forward(
        ctx: Any,
        image_BD: Tensor,
        text_BD: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        grid: Grid,
        group: ProcessGroup | None,
    ) -> Tensor:
        dtype = wide(image_BD)
        scale, bias = logit_scale.to(dtype), logit_bias.to(dtype)
        with torch.autocast(image_BD.device.type, enabled=False):
            text_GD = collectives.all_gather(text_BD, group)
            total = image_BD.new_zeros((), dtype=dtype)
            for columns in grid.column_slices():
                y_ND = grid.columns(text_GD, columns).to(dtype)
                for rows in grid.row_slices(len(y_ND)):
                    logits_RN = (image_BD[rows].to(dtype) * scale) @ y_ND.T + bias
                    signed_RN = _sign_negatives(logits_RN, grid, rows, columns)
                    total -= _leave_out(functional.logsigmoid(signed_RN), grid, rows, columns).sum()
        ctx.save_for_backward(image_BD, text_GD, logit_scale, logit_bias)
        ctx.grid, ctx.group = grid, group
        return total / grid.global_batch_size

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, share_gradient: Tensor) -> tuple[Tensor | None, ...]:
        image_BD, text_GD, logit_scale, logit_bias = ctx.saved_tensors
        grid: Grid = ctx.grid
        dtype = wide(image_BD)
        bias = logit_bias.to(dtype)
        db = torch.zeros_like(bias)

        def tile_gradient(logits_RN: Tensor, rows: slice, columns: slice) -> Tensor:
            """g_ij = -z_ij sigmoid(-z_ij (S_ij + b)) / G, 0 where left out."""
            signed_RN = _sign_negatives(logits_RN.add_(bias), grid, rows, columns)
            falling_RN = signed_RN.neg_().sigmoid_().div_(-grid.global_batch_size)
            gradient_RN = _leave_out(_sign_negatives(falling_RN, grid, rows, columns), grid, rows, columns)
            db.add_(gradient_RN.sum())
            return gradient_RN

        with torch.autocast(image_BD.device.type, enabled=False):
            dx_BD, dy_BD, ds = input_gradients(
                image_BD,
                text_GD,
                logit_scale.to(dtype),
                grid=grid,
                group=ctx.group,
                tile_gradient=tile_gradient,
            )
            gradients = [(gradient * share_gradient) for gradient in (dx_BD, dy_BD, ds, db)]
        dtypes = (image_BD.dtype, text_GD.dtype, logit_scale.dtype, logit_bias.dtype)
        return *(gradient.to(dtype) for gradient, dtype in zip(gradients, dtypes, strict=True)), None, None


def _sign_negatives(tile_RN: Tensor, grid: Grid, rows: slice, columns: slice) -> Tensor:
    """z_ij times the tile, in place."""
    positive_RN = grid.positives(rows, columns)
    tile_RN.neg_()
    if positive_RN is None:
        grid.pairs(tile_RN, rows, columns).neg_()
        return tile_RN
    return torch.where(positive_RN, -tile_RN, tile_RN)


def _leave_out(tile_RN: Tensor, grid: Grid, rows: slice, columns: slice) -> Tensor:
    left_out_RN = grid.left_out(rows, columns)
    return tile_RN if left_out_RN is None else tile_RN.masked_fill_(left_out_RN, 0)
