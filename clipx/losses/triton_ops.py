"""Launches the losses' Triton kernels: what happens in a tile, its similarities never reaching memory.

The functions have the signatures of torch's tiles in `info_nce` and `sigmoid`, for tiles without `positive_ids`; the
kernels stand in `clipx.losses.triton_kernels`. Results repeat bit for bit: programs write to places of their own, sums
over programs have a fixed order, there are no atomics. bfloat16 and float16 operands have exact products, summed in
float32; float32 operands are multiplied as IEEE float32, without tensor cores.

Shape suffixes: R rows and N columns of a tile, D embedding, K programs along an axis.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from clipx.losses import triton_kernels
from clipx.losses.exchange import Columns
from clipx.losses.tiles import Grid, Tile, grad_scale


def info_nce_statistics(x_RD: Tensor, y_ND: Tensor, logit_scale: Tensor, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """log sum exp of the tile's rows (R,) and columns (N,); the similarity of each row's pair, 0 if not in the tile."""
    counts, arguments, constants = _launch(x_RD, y_ND, logit_scale, tile)
    row_JR = logit_scale.new_empty((2, counts[1], len(x_RD)))
    column_IN = logit_scale.new_empty((2, counts[0], len(y_ND)))
    pair_R = logit_scale.new_zeros(len(x_RD))
    triton_kernels.statistics_kernel[counts](*row_JR, *column_IN, pair_R, *arguments, **constants)
    return _log_sum_exp(*row_JR), _log_sum_exp(*column_IN), pair_R


def _log_sum_exp(max_K: Tensor, sum_K: Tensor) -> Tensor:
    """Over the programs K, each with a largest logit and a sum of exp relative to it; -inf where all is left out."""
    largest = max_K.amax(0)
    return (max_K - largest).exp_().mul_(sum_K).sum(0).log_().add_(largest)


def info_nce_gradient(
    x_RD: Tensor, y_ND: Tensor, logit_scale: Tensor, tile: Tile, *, row_lse_R: Tensor, column_lse_N: Tensor
) -> Tensor:
    """grad_scale(x) G g_ij (R, N), in x's dtype."""
    counts, arguments, constants = _launch(x_RD, y_ND, logit_scale, tile)
    gradient_RN = x_RD.new_empty((len(x_RD), len(y_ND)))
    triton_kernels.info_nce_gradient_kernel[counts](
        gradient_RN, row_lse_R, column_lse_N, *arguments, **constants, GAIN=grad_scale(x_RD)
    )
    return gradient_RN


def sigmoid_tile(
    x_RD: Tensor, y_ND: Tensor, logit_scale: Tensor, logit_bias: Tensor, tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the tile's losses; sum of G g_ij; grad_scale(x) G g_ij (R, N), in x's dtype."""
    counts, arguments, constants = _launch(x_RD, y_ND, logit_scale, tile)
    gradient_RN = x_RD.new_empty((len(x_RD), len(y_ND)))
    loss_IJ, gradient_sum_IJ = logit_scale.new_empty((2, *counts))
    triton_kernels.sigmoid_kernel[counts](
        gradient_RN, loss_IJ, gradient_sum_IJ, logit_bias, *arguments, **constants, GAIN=grad_scale(x_RD)
    )
    return loss_IJ.sum(), gradient_sum_IJ.sum(), gradient_RN


def try_all(width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Runs every kernel as whole tiles of a training step run it, to find out whether it compiles for this device."""
    size = TRIAL_SIZE
    x_BD = torch.ones(size, width, dtype=dtype, device=device)
    ids_G = torch.zeros(size, dtype=torch.int32, device=device)  # the trainer always has ids; without, less is compiled
    grid = Grid(rank=0, world_size=1, batch_size=size, tile_size=size, ids_G=ids_G)
    tile = Tile(grid, slice(0, size), Columns(slice(0, 1), slice(0, size)))
    scale = x_BD.new_ones(1, dtype=torch.float32)
    row_lse_B, column_lse_B, _ = info_nce_statistics(x_BD, x_BD, scale, tile)
    info_nce_gradient(x_BD, x_BD, scale, tile, row_lse_R=row_lse_B, column_lse_N=column_lse_B)
    sigmoid_tile(x_BD, x_BD, scale, scale, tile)


@dataclass(frozen=True)
class Blocks:
    """What one program computes, and with what. Too large: registers spill; too small: operands are read too often."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


# 128 x 128 float32 sums are 64 registers in each of 256 threads. Compiled for sm_90 no kernel spills (185 to 255
# registers); 128 x 256 spills. Chosen by that, not by time: benchmarks/loss.py --blocks times the alternatives.
NARROW_BLOCKS = Blocks(rows=128, columns=128, depth=64, num_warps=8, num_stages=3)
FLOAT32_BLOCKS = Blocks(rows=64, columns=64, depth=32, num_warps=4, num_stages=3)
TRIAL_SIZE = 256
"""A multiple of all blocks, the alternatives included: what is compiled for a trial serves the run."""


def _launch(
    x_RD: Tensor, y_ND: Tensor, logit_scale: Tensor, tile: Tile
) -> tuple[tuple[int, int], tuple[Any, ...], dict[str, Any]]:
    """Number of programs along rows and columns; the arguments that all kernels share; their constants."""
    (num_rows, width), num_columns = x_RD.shape, len(y_ND)
    blocks = FLOAT32_BLOCKS if x_RD.dtype == torch.float32 else NARROW_BLOCKS
    row_ids_R, column_ids_N = tile.ids() or (x_RD, y_ND)  # never read without ids
    pairs = tile.pair_rows
    arguments = (
        x_RD.contiguous(),
        y_ND.contiguous(),
        logit_scale,
        row_ids_R.contiguous(),
        column_ids_N.contiguous(),
        num_rows,
        num_columns,
        pairs.start,
        pairs.stop,
        tile.pair_column,
    )
    constants = {
        "D": width,
        "HAS_IDS": tile.grid.ids_G is not None,
        "EVEN": num_rows % blocks.rows == 0 and num_columns % blocks.columns == 0,
        "PRECISION": "ieee",
        "BLOCK_R": blocks.rows,
        "BLOCK_N": blocks.columns,
        "BLOCK_D": blocks.depth,
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
    }
    return (triton.cdiv(num_rows, blocks.rows), triton.cdiv(num_columns, blocks.columns)), arguments, constants
