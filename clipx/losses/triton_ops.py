"""Launches the losses' Triton kernels: what happens in a tile, its similarities never reaching memory.

The functions have the signatures of torch's tiles in `info_nce` and `sigmoid`, on a grid from `Grid.for_kernels`; the
kernels stand in `clipx.losses.triton_kernels` and `triton_combine`. Results repeat bit for bit: programs write to
places of their own, sums over programs have a fixed order, there are no atomics. bfloat16 and float16 operands have
exact products, summed in float32; float32 operands are multiplied as IEEE float32, without tensor cores.

Shape suffixes: R rows and N columns of a tile, D embedding, I programs along rows, J along columns, P all of them.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from clipx.losses import triton_combine, triton_kernels
from clipx.losses.exchange import Columns
from clipx.losses.tiles import Grid, Tile, grad_scale


def info_nce_statistics(
    x_RD: Tensor, y_ND: Tensor, logit_scale: Tensor, tile: Tile, *, weight_B: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log sum exp of the tile's rows (R,) and columns (N,); the positives' part in the mean over each row's (R,)."""
    launch = Launch(x_RD, y_ND, logit_scale, tile)
    (num_rows, num_columns), (_, num_across) = launch.size, launch.counts
    row_JR = logit_scale.new_empty((2 if weight_B is None else 3, num_across, num_rows))
    column_IN = logit_scale.new_empty((2, launch.counts[0], num_columns))
    positive_JR = None if weight_B is None else row_JR[2]
    partial = (row_JR[0], row_JR[1], column_IN[0], column_IN[1], positive_JR)
    triton_kernels.statistics_kernel[launch.counts](*partial, *launch.arguments, **launch.constants)
    row_lse_R, positive_R = logit_scale.new_empty((2, num_rows))
    column_lse_N = logit_scale.new_empty(num_columns)
    count = sum(triton.cdiv(size, COMBINE_BLOCKS["BLOCK"]) for size in launch.size)
    triton_combine.combine_kernel[(count,)](
        row_lse_R, column_lse_N, positive_R, *partial, *launch.operands, *launch.size, *launch.counts, *launch.pairs,
        SEVERAL=weight_B is not None, D=x_RD.shape[1], **COMBINE_BLOCKS,
    )  # fmt: skip
    return row_lse_R, column_lse_N, positive_R if weight_B is None else positive_R.mul_(weight_B[tile.rows])


def info_nce_gradient(
    x_RD: Tensor,
    y_ND: Tensor,
    logit_scale: Tensor,
    tile: Tile,
    *,
    row_lse_R: Tensor,
    column_lse_N: Tensor,
    weight_B: Tensor | None,
) -> Tensor:
    """grad_scale(x) G g_ij (R, N), in x's dtype."""
    launch, gain = Launch(x_RD, y_ND, logit_scale, tile), grad_scale(x_RD)
    gradient_RN = x_RD.new_empty(launch.size)
    weight_R = None if weight_B is None else weight_B[tile.rows]
    triton_kernels.info_nce_gradient_kernel[launch.counts](
        gradient_RN, row_lse_R, column_lse_N, weight_R, *launch.arguments, *launch.pairs, **launch.constants,
        GAIN=gain, HALVING=math.log2(2 / gain),
    )  # fmt: skip
    return gradient_RN


def sigmoid_tile(
    x_RD: Tensor, y_ND: Tensor, logit_scale: Tensor, logit_bias: Tensor, tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the tile's losses; sum of G g_ij; grad_scale(x) G g_ij (R, N), in x's dtype."""
    launch, gain = Launch(x_RD, y_ND, logit_scale, tile), grad_scale(x_RD)
    gradient_RN, sums_P = x_RD.new_empty(launch.size), logit_scale.new_empty((2, math.prod(launch.counts)))
    triton_kernels.sigmoid_kernel[launch.counts](
        gradient_RN, sums_P[0], sums_P[1], logit_bias, *launch.arguments, *launch.pairs, **launch.constants, GAIN=gain
    )
    loss, gradient_sum = sums_P.sum(1)
    return loss, gradient_sum, gradient_RN


def try_all(width: int, dtype: torch.dtype, device: torch.device, *, several_positives: bool) -> None:
    """Runs every kernel as whole tiles of a training step run it, to find out whether it compiles for this device."""
    size = TRIAL_SIZE
    x_BD = torch.ones(size, width, dtype=dtype, device=device)
    ids_G = torch.zeros(size, dtype=torch.int32, device=device)
    positive_ids_G = ids_G if several_positives else None
    grid = Grid(
        rank=0, world_size=1, batch_size=size, tile_size=size, ids_G=ids_G, positive_ids_G=positive_ids_G
    ).for_kernels(1, device)
    tile = Tile(grid, slice(0, size), Columns(slice(0, 1), slice(0, size)))
    scale = x_BD.new_ones(1, dtype=torch.float32)
    weight_B = scale.expand(size).contiguous() if several_positives else None
    row_lse_B, column_lse_B, _ = info_nce_statistics(x_BD, x_BD, scale, tile, weight_B=weight_B)
    info_nce_gradient(x_BD, x_BD, scale, tile, row_lse_R=row_lse_B, column_lse_N=column_lse_B, weight_B=weight_B)
    sigmoid_tile(x_BD, x_BD, scale, scale, tile)


@dataclass(frozen=True)
class Blocks:
    """What one program computes, and with what. Too large: registers spill; too small: operands are read too often."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    max_registers: int | None


# 128 x 128 float32 sums are 64 registers in each of 256 threads. Two programs share the 65,536 registers of a
# multiprocessor if they need no more than 128. Compiled for sm_90 by triton 3.6 all three kernels need just that, and
# spill nothing; with several positives 16 to 176 bytes. Chosen by that, not by time: benchmarks/loss.py --blocks times
# the alternatives.
NARROW_BLOCKS = Blocks(rows=128, columns=128, depth=64, num_warps=8, num_stages=3, max_registers=128)
FLOAT32_BLOCKS = Blocks(rows=64, columns=64, depth=32, num_warps=4, num_stages=3, max_registers=None)
COMBINE_BLOCKS = {"BLOCK": 32, "BLOCK_D": 128, "BLOCK_K": 32}
TRIAL_SIZE = 256
"""A multiple of all blocks, the alternatives included: what is compiled for a trial serves the run."""


@cache
def _has_tensor_memory(device: torch.device) -> bool:
    """Whether products are summed outside of the registers, as on sm_100."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 10


class Launch:
    """What the kernels of one tile need.

    Attributes:
        size: rows and columns of the tile.
        counts: programs along rows and along columns.
        operands: images, texts and the multiplier.
    """

    def __init__(self, x_RD: Tensor, y_ND: Tensor, logit_scale: Tensor, tile: Tile) -> None:
        self._tile = tile
        self._blocks = FLOAT32_BLOCKS if x_RD.dtype == torch.float32 else NARROW_BLOCKS
        self.size = (len(x_RD), len(y_ND))
        self.counts = (triton.cdiv(len(x_RD), self._blocks.rows), triton.cdiv(len(y_ND), self._blocks.columns))
        self.operands = (x_RD.contiguous(), y_ND.contiguous(), logit_scale)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the kernels of all similarities share."""
        grid = self._tile.grid
        assert grid.ids_G is not None, "a grid from Grid.for_kernels"
        positive_ids = (None, None) if grid.positive_ids_G is None else self._tile.ids(grid.positive_ids_G)
        return *self.operands, *self._tile.no_negative_ids(), *positive_ids, *self.size

    @property
    def constants(self) -> dict[str, Any]:
        """Their constants."""
        blocks, (num_rows, num_columns) = self._blocks, self.size
        return {
            "D": self.operands[0].shape[1],
            "NUM_IDS": self._num_ids,
            "SEVERAL": self._tile.grid.positive_ids_G is not None,
            "EVEN": num_rows % blocks.rows == 0 and num_columns % blocks.columns == 0,
            "PRECISION": "ieee",
            "BLOCK_R": blocks.rows,
            "BLOCK_N": blocks.columns,
            "BLOCK_D": blocks.depth,
            "num_warps": blocks.num_warps,
            "num_stages": blocks.num_stages,
            "maxnreg": self._max_registers(),
        }

    @property
    def _num_ids(self) -> int:
        ids_G = self._tile.grid.ids_G
        return 1 if ids_G is None or ids_G.dim() == 1 else ids_G.shape[-1]

    def _max_registers(self) -> int | None:
        """None where programs would spill for it: with masks in the products, and with sums in memory of their own."""
        spilling = self.operands[0].shape[1] % self._blocks.depth or _has_tensor_memory(self.operands[0].device)
        return None if spilling else self._blocks.max_registers

    @property
    def pairs(self) -> tuple[int, int, int]:
        """First row and end of the pairs, and the column of row 0's."""
        rows = self._tile.pair_rows
        return rows.start, rows.stop, self._tile.pair_column
