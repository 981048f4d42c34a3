"""Distillation from teachers' embeddings: divergence of rows of similarities over the global batch, exact and in tiles.

MobileCLIP's L_Distill (arXiv 2311.17049, section 3).

Shape suffixes: B local pairs, G global pairs, R rows and N columns of a tile, D embedding, E the embeddings of all
teachers side by side, K teachers, L = 1 + K with the student first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed import collectives
from clipx.losses.cost import LossCost, LossShape, Transfer, tiled_cost
from clipx.losses.exchange import Accompanied, all_gather, make_exchange
from clipx.losses.similarity_sums import (
    SimilaritySums,
    divergences,
    over_ranks,
    probabilities,
    sums_of,
    taught,
)
from clipx.losses.tiles import (
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

_FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What the loss knows of a teacher."""

    width: int
    """Of its embeddings."""
    logit_scale: float
    """Multiplier of its similarities, the one of its training as a rule."""
    weight: float = 1.0
    """Relative to the other teachers'."""


class DistillLoss:
    """Mean over rows and columns of KL(teacher || student), and over teachers by their weights.

    With S = s x y^T of the student and T = a u v^T of a teacher over the G pairs, each text's softmax in the row of an
    image and each image's in the column of a text, p and t,

        L = 1/2G [ sum_i KL(t_i. || p_i.) + sum_j KL(t_.j || p_.j) ],
        KL(t_i. || p_i.) = sum_j t_ij (T_ij - S_ij) - log sum_j exp T_ij + log sum_j exp S_ij,

    so that three sums for each row and column are enough, which come tile by tile. The gradient with respect to S,
    recomputed tile by tile, is 1/2G times the sum, over rows and columns, of p - sum_k w_k t^k with weights w that sum
    to 1. The multiplier s has its gradient; teachers have none.

    No pair is left out. Where a batch has a sample or a caption twice, the teacher says so in its row: it gives both
    about the same share. Several captions of an image are rows of their own, with the image repeated; a softmax over
    repeated entries has the divergence of the one over distinct entries, so this is the loss of the distinct images.

    Numerics and memory as `clipx.losses.info_nce.InfoNCELoss`; teachers' embeddings enter products in the student's
    dtype. Computed by torch on every device. 8 B G (D + E/2) floating-point operations. Communication per rank:
    `clipx.losses.exchange`, the teachers' texts beside the student's, without gradients; and 2 all-reduces, of G L and
    of G (L + K) numbers.

    Args:
        teachers: at least one.
        exchange: gather all texts, or pass them round in a ring where G x (D + E) does not fit.
        tile_size: as `clipx.losses.tiled_loss.TiledLoss`.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        *,
        exchange: Literal["gather", "ring"] = "gather",
        tile_size: int = 2048,
    ) -> None:
        assert teachers, "distillation without a teacher"
        total = math.fsum(teacher.weight for teacher in teachers)
        self.teachers = tuple(replace(teacher, weight=teacher.weight / total) for teacher in teachers)
        self.exchange = exchange
        self.tile_size = tile_size

    def __call__(
        self,
        embeddings: Embeddings,
        *,
        image_BE: Tensor,
        text_BE: Tensor,
        group: ProcessGroup | None = None,
    ) -> tuple[Tensor, Tensor]:
        """This rank's share of the loss, as `clipx.losses.ContrastiveLoss` describes it, and of each teacher's.

        Args:
            embeddings: B pairs of this rank.
            image_BE: the teachers' embeddings of these images, side by side, each of unit length.
            text_BE: those of these texts.
            group: the ranks that share the global batch.

        Returns:
            0-d, in at least float32; (K,) without a graph: the shares of each teacher's divergence, unweighted.
        """
        image_BE, text_BE = (known.detach().to(embeddings.image_BD.dtype) for known in (image_BE, text_BE))
        gathers = self.exchange == "gather" and group is not None
        share, of_teachers_K, _, _ = _distill(
            embeddings.image_BD,
            embeddings.text_BD,
            embeddings.logit_scale,
            image_BE,
            text_BE,
            all_gather(embeddings.text_BD, group) if gathers else None,
            all_gather(text_BE, group) if gathers else None,
            [teacher.width for teacher in self.teachers],
            [teacher.logit_scale for teacher in self.teachers],
            [teacher.weight for teacher in self.teachers],
            "" if group is None else group.group_name,
            self.tile_size,
        )
        return share, of_teachers_K

    def cost(self, shape: LossShape) -> LossCost:
        """The student's four products of B x G x D, and two of each teacher."""
        cost = tiled_cost(shape, num_products=4, num_passes=2, exchange=self.exchange, with_ids=False)
        num_teachers, width = len(self.teachers), sum(teacher.width for teacher in self.teachers)
        pairs, own = shape.global_batch_size, shape.rank_batch_size * width
        texts = shape.element_bytes * pairs * width
        gathers = self.exchange == "gather"
        moved = Transfer(
            part="teachers' texts",
            collective="all-gather" if gathers else "shift",
            payload=texts,
            times=1 if gathers else 2 * (shape.world_size - 1),
        )
        sums = [
            Transfer(part=f"{what} of similarities", collective="all-reduce", payload=_FLOAT * pairs * count, times=1)
            for what, count in (("maxima", 1 + num_teachers), ("sums", 1 + 2 * num_teachers))
        ]
        return LossCost(
            flops=cost.flops + 2.0 * 2 * shape.rank_batch_size * pairs * width,
            gathered_bytes=cost.gathered_bytes + (texts if gathers else 0),
            # of images and texts, as they come and as they are computed with; in a ring also those on their way
            working_bytes=cost.working_bytes + (2 * _FLOAT + (2 if gathers else 4) * shape.element_bytes) * own,
            transfers=(*(replace(one, part=f"{one.part}, to distill") for one in cost.transfers), moved, *sums),
        )


# Registered operators, so that a compiled caller sees one node and goes on. They take plain values only, hence so many.


@torch.library.custom_op("clipx::distill", mutates_args=())
def _distill(  # noqa: PLR0913, PLR0917
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    image_BE: Tensor,
    text_BE: Tensor,
    text_GD: Tensor | None,
    text_GE: Tensor | None,
    widths: Sequence[int],
    scales: Sequence[float],
    weights: Sequence[float],
    group_name: str,
    tile_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The share; each teacher's (K,); log sum exp of rows (B, L) and of columns (G, L)."""
    group = collectives.named_group(group_name)
    grid = make_grid(image_BD, text_BD, group, tile_size=tile_size, ids_G=None, positive_ids_G=None)
    scale = logit_scale.to(accumulation_dtype(image_BD))
    with torch.autocast(image_BD.device.type, enabled=False):
        exchange = _exchange(text_BD, text_BE, text_GD, text_GE, slice_size=grid.tile_size, group=group)
        rows_B, columns_G = sums_of(image_BD, image_BE, scale, exchange, grid, widths=widths, scales=scales)
        columns_G = over_ranks(columns_G, group)
        own_B = SimilaritySums(grid.local(columns_G.lse_XL), grid.local(columns_G.excess_XK))
        divergences_BK = divergences(rows_B) + divergences(own_B)
        of_teachers_K = divergences_BK.sum(0) / (2 * grid.global_batch_size)
        weighted = (weight * one for weight, one in zip(weights, of_teachers_K.unbind(), strict=True))
        share = sum(weighted, start=scale.new_zeros(()))
    return share, of_teachers_K, rows_B.lse_XL, columns_G.lse_XL


@_distill.register_fake
def _(image_BD: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_teachers, world_size = len(others[-5]), collectives.world_size(collectives.named_group(others[-2]))
    sums_BL = image_BD.new_empty((len(image_BD), 1 + num_teachers), dtype=accumulation_dtype(image_BD))
    columns_GL = sums_BL.new_empty((world_size * len(image_BD), 1 + num_teachers))
    return sums_BL.new_empty(()), sums_BL.new_empty((num_teachers,)), sums_BL, columns_GL


@torch.library.custom_op("clipx::distill_backward", mutates_args=())
def _distill_backward(  # noqa: PLR0913, PLR0917
    share_gradient: Tensor,
    row_lse_BL: Tensor,
    column_lse_GL: Tensor,
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    image_BE: Tensor,
    text_BE: Tensor,
    text_GD: Tensor | None,
    text_GE: Tensor | None,
    widths: Sequence[int],
    scales: Sequence[float],
    weights: Sequence[float],
    group_name: str,
    tile_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for image_BD, text_BD and logit_scale."""
    group = collectives.named_group(group_name)
    grid = make_grid(image_BD, text_BD, group, tile_size=tile_size, ids_G=None, positive_ids_G=None)
    scale = logit_scale.to(accumulation_dtype(image_BD))
    exchange = _exchange(text_BD, text_BE, text_GD, text_GE, slice_size=2 * grid.tile_size, group=group)

    def gradient(x_RD: Tensor, y_ND: Tensor, tile: Tile) -> Tensor:
        """grad_scale(x) G g_ij (R, N)."""
        lse_LR, lse_LN = row_lse_BL[tile.rows].T, grid.take(column_lse_GL, tile.columns).T
        half = grad_scale(x_RD) / 2
        gradient_RN = probabilities(similarities(x_RD, y_ND, scale), lse_LR[0], lse_LN[0], half)
        u_RE, v_NE = matmul_operand(image_BE[tile.rows]), matmul_operand(exchange.beside_NE)
        for k, teacher_RN in enumerate(taught(u_RE, v_NE, widths, scales)):
            gradient_RN -= probabilities(teacher_RN, lse_LR[1 + k], lse_LN[1 + k], half * weights[k])
        return gradient_RN

    with torch.autocast(image_BD.device.type, enabled=False):
        dx_BD, dy_BD, ds = input_gradients(
            image_BD,
            scale,
            exchange,
            grid=grid,
            loss_scale=share_gradient / grid.global_batch_size,
            dtype=image_BD.dtype,
            tile_gradient=gradient,
        )
    return dx_BD, dy_BD, ds.to(logit_scale.dtype)


register_gradients(_distill, _distill_backward, num_tensors=7, num_sums=2)


def _exchange(
    text_BD: Tensor,
    text_BE: Tensor,
    text_GD: Tensor | None,
    text_GE: Tensor | None,
    *,
    slice_size: int,
    group: ProcessGroup | None,
) -> Accompanied:
    """The student's texts with the teachers' beside them."""
    return Accompanied(
        make_exchange(text_BD, text_GD, slice_size=slice_size, group=group),
        make_exchange(text_BE, text_GE, slice_size=slice_size, group=group),
    )
