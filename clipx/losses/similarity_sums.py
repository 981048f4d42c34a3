"""Sums over rows and columns of similarities that a divergence between two of them needs, tile by tile.

Shape suffixes: B local pairs, G global pairs, R rows and N columns of a tile, X rows or columns, D embedding, E and F
widths of all teachers and of one, K teachers, L = 1 + K with the student first.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed import collectives
from clipx.losses.exchange import Accompanied
from clipx.losses.tiles import Grid, matmul_operand, similarities


class SimilaritySums(NamedTuple):
    """What rows, or columns, of similarities have in common with the whole: X of them."""

    lse_XL: Tensor
    """log sum exp of the student's and of each teacher's."""
    excess_XK: Tensor
    """sum t (T - S), the mean under each teacher."""


def sums_of(
    image_BD: Tensor,
    image_BE: Tensor,
    logit_scale: Tensor,
    exchange: Accompanied,
    grid: Grid,
    *,
    widths: Sequence[int],
    scales: Sequence[float],
) -> tuple[SimilaritySums, SimilaritySums]:
    """One pass over the tiles: the sums of this rank's rows (B), and of every column over these rows alone (G)."""
    columns_G = SimilaritySums(
        logit_scale.new_empty((grid.global_batch_size, 1 + len(widths))),
        logit_scale.new_empty((grid.global_batch_size, len(widths))),
    )
    of_rows = []
    for columns, text_ND in exchange.forward():
        y_ND, v_NE = matmul_operand(text_ND), matmul_operand(exchange.beside_NE)
        tiles = []
        for rows in grid.row_slices(len(columns)):
            student_RN = similarities(matmul_operand(image_BD[rows]), y_ND, logit_scale)
            tiles.append(_tile_sums(student_RN, taught(matmul_operand(image_BE[rows]), v_NE, widths, scales)))
        rows_R, columns_N = zip(*tiles, strict=True)
        of_rows.append(SimilaritySums(*(torch.cat(parts) for parts in zip(*rows_R, strict=True))))
        of_columns: SimilaritySums = reduce(_together, columns_N)
        for whole_G, part_N in zip(columns_G, of_columns, strict=True):
            by_owner = part_N.unflatten(0, (-1, columns.num_places))
            grid.by_owner(whole_G)[columns.owners, columns.places] = by_owner
    return reduce(_together, of_rows), columns_G


def taught(u_RE: Tensor, v_NE: Tensor, widths: Sequence[int], scales: Sequence[float]) -> Iterator[Tensor]:
    """Each teacher's scaled similarities (R, N), made when its turn comes."""
    for u_RF, v_NF, scale in zip(u_RE.split(widths, 1), v_NE.split(widths, 1), scales, strict=True):
        yield similarities(u_RF, v_NF, scale)


def _tile_sums(student_RN: Tensor, teachers_RN: Iterator[Tensor]) -> list[SimilaritySums]:
    """Those of a tile's rows and of its columns."""
    of_teachers = [_teacher_sums(teacher_RN, student_RN) for teacher_RN in teachers_RN]
    of_sides = []
    for place, dim in enumerate((1, 0)):
        lse, excess = zip(*(sums[place] for sums in of_teachers), strict=True)
        of_sides.append(SimilaritySums(torch.stack([_lse(student_RN, dim), *lse], 1), torch.stack(excess, 1)))
    return of_sides


def _teacher_sums(teacher_RN: Tensor, student_RN: Tensor) -> list[tuple[Tensor, Tensor]]:
    """log sum exp and excess of a tile's rows (R,) and of its columns (N,)."""
    excess_RN, sums = teacher_RN - student_RN, []
    for dim in (1, 0):
        lse = _lse(teacher_RN, dim)
        sums.append((lse, (teacher_RN - lse.unsqueeze(dim)).exp_().mul_(excess_RN).sum(dim)))
    return sums


def _lse(logits_RN: Tensor, dim: int) -> Tensor:
    largest = logits_RN.amax(dim, keepdim=True)
    return (logits_RN - largest).exp_().sum(dim).log_().add_(largest.squeeze(dim))


def _together(one: SimilaritySums, other: SimilaritySums) -> SimilaritySums:
    """The sums of two parts of the same rows, or columns."""
    lse_XL = torch.logaddexp(one.lse_XL, other.lse_XL)
    shares = [(part.lse_XL[:, 1:] - lse_XL[:, 1:]).exp_().mul_(part.excess_XK) for part in (one, other)]
    return SimilaritySums(lse_XL, shares[0].add_(shares[1]))


def over_ranks(columns_G: SimilaritySums, group: ProcessGroup | None) -> SimilaritySums:
    """Each rank's sums over its own rows as those over the rows of all ranks."""
    if group is None:
        return columns_G
    lse_GL, excess_GK = columns_G
    largest_GL = collectives.all_reduce(lse_GL.clone(), "max", group)
    share_GL = (lse_GL - largest_GL).exp_()
    sums = collectives.all_reduce(torch.cat([share_GL, excess_GK * share_GL[:, 1:]], dim=1), "sum", group)
    total_GL, excess_GK = sums.split([lse_GL.shape[1], excess_GK.shape[1]], dim=1)
    return SimilaritySums(largest_GL.add_(total_GL.log()), excess_GK / total_GL[:, 1:])


def divergences(sums: SimilaritySums) -> Tensor:
    """KL of each teacher from the student (X, K)."""
    return sums.excess_XK - sums.lse_XL[:, 1:] + sums.lse_XL[:, :1]


def probabilities(logits_RN: Tensor, row_lse_R: Tensor, column_lse_N: Tensor, factor: float) -> Tensor:
    """The factor times the sum of the softmax of the rows and of the columns, using up the logits."""
    shift = math.log(factor)  # within the exponent it spares a pass over the tile
    by_column_RN = (logits_RN - (column_lse_N - shift)).exp_()
    return logits_RN.sub_((row_lse_R - shift)[:, None]).exp_().add_(by_column_RN)
