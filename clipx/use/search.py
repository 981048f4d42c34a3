"""The best rows of stored embeddings for each query, exactly.

Tiles of rows are multiplied with all queries in float32, or in bfloat16 where the processor is twice as fast with it.
These products only choose: whatever could be among the best, by the bound of their rounding, is computed again in
float64, and ranked by that. So the result depends neither on tiles, threads and devices nor on how a library adds, and
equal rows have equal scores.

Axes: N rows, T rows of a tile, Q queries, D dimensions, K hits of a query, C candidates.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipx.errors import InputError

_TILE = 2048
"""Rows: with 1,024 queries the scores of a tile are 8 MB, which stay in the cache of large processors."""
_BLOCK = 1024
"""Queries that are compared at once."""
_LEAST_FOR_BFLOAT16 = 32
"""Queries: with fewer, reading the rows takes longer than multiplying them."""
_CHUNK = 512
"""Candidates that are scored at once: 2 MB of 512 products in float64."""
_MOST_CHOSEN = 0.004
"""Candidates per product in bfloat16: with more, scoring them takes longer than products in float32."""
_ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""Half of the distance of 1 to the next number: the relative error of one rounding."""


class TooFewError(InputError):
    """More hits are wanted than there are rows."""

    def __init__(self, k: int, count: int) -> None:
        super().__init__(f"-k {k}: there are only {count:,} rows to find; ask for at most so many")
        self.count = count


class Hits(NamedTuple):
    """The best rows of every query, best first; of equal scores the earlier row first."""

    score_QK: NDArray[np.float32]
    """Inner products: cosines, as embeddings have length 1."""
    row_QK: NDArray[np.int64]
    """Their numbers, counted through all shards."""


def search_rows(
    shards: Sequence[np.ndarray],
    queries_QD: NDArray[np.float32],
    *,
    k: int,
    device: torch.device | str = "cpu",
    bfloat16: bool | None = None,
) -> Hits:
    """The `k` rows with the largest inner products, for each query.

    Args:
        shards: arrays (rows, D) of float16 or float32; of a memory map, pages are given back as soon as they are read.
        queries_QD: the queries, of any length.
        k: from 1 to the number of rows; those of zeros alone are none.
        device: where the products are computed.
        bfloat16: whether a CPU computes them in it; None means where that is faster. The result is the same.

    Raises:
        TooFewError: there are fewer rows than `k`.
        InputError: D does not fit the rows, or a row or query has numbers that are not finite.
    """
    queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
    _check(shards, queries_QD, k)
    device = torch.device(device)
    if device.type != "cpu":
        bfloat16 = False  # CUDA may add parts of a product in bfloat16, which the bound does not cover
    elif bfloat16 is None:
        bfloat16 = len(queries_QD) >= _LEAST_FOR_BFLOAT16 and _has_fast_bfloat16()
    blocks = [
        _Block(queries_QD[start : start + _BLOCK], k, device=device, bfloat16=bfloat16)
        for start in range(0, len(queries_QD), _BLOCK)
    ]
    num_rows = 0
    for first_row, rows_TD in _tiles(shards):
        norm_T = _norms(rows_TD, first_row)
        num_rows += int(norm_T.count_nonzero())
        tile = _Tile(rows_TD, rows_TD.to(device), norm_T, first_row)
        if any(block.uses_bfloat16 for block in blocks):
            tile = tile._replace(half_TD=tile.on_device_TD.bfloat16())
        for block in blocks:
            block.add(tile)
    if k > num_rows:
        raise TooFewError(k, num_rows)
    found = [block.settle() for block in blocks]
    return Hits(np.concatenate([hits.score_QK for hits in found]), np.concatenate([hits.row_QK for hits in found]))


def _check(shards: Sequence[np.ndarray], queries_QD: NDArray[np.float32], k: int) -> None:
    if k < 1:
        raise InputError(f"-k {k} is not positive; ask for at least one")
    if k > (num_rows := sum(len(shard) for shard in shards)):
        raise TooFewError(k, num_rows)
    if len(queries_QD) == 0:
        raise InputError("nothing to search for; give at least one query")
    dims = sorted({shard.shape[1] for shard in shards})
    if dims != [queries_QD.shape[1]]:
        raise InputError(
            f"the queries have {queries_QD.shape[1]} dimensions, and the rows {dims}; both must have as many"
        )
    if not np.isfinite(queries_QD).all():
        raise InputError("the embedding of a query has numbers that are not finite; is the model whole?")


def _has_fast_bfloat16() -> bool:
    """Whether this CPU's products in bfloat16 are faster, and added in float32."""
    supports = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private in torch 2.15; without it, float32
    return bool(supports is not None and supports())


def _tiles(shards: Sequence[np.ndarray]) -> Iterator[tuple[int, Tensor]]:
    """(number of the first row, rows as float32 (T, D) on the host), in order; the next tile may overwrite a tensor."""
    buffer_TD = torch.empty((_TILE, shards[0].shape[1]))
    first_row = 0
    for shard in shards:
        for start in range(0, len(shard), _TILE):
            rows = fresh_rows(shard, start, min(start + _TILE, len(shard)))
            rows_TD = torch.from_numpy(rows)
            if rows_TD.dtype != torch.float32:
                rows_TD = buffer_TD[: len(rows)].copy_(rows_TD)
            yield first_row + start, rows_TD
        first_row += len(shard)


def fresh_rows(shard: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Rows of a shard; those of a memory map by a map of their own, which gives its memory back when it goes."""
    if not isinstance(shard, np.memmap) or shard.filename is None or start == stop or not shard.flags.c_contiguous:
        return np.ascontiguousarray(shard[start:stop])
    offset = shard.offset + start * shard.strides[0]
    # "c": torch asks for memory that could be written, and never writes it
    rows: np.ndarray = np.memmap(shard.filename, shard.dtype, "c", offset=offset, shape=(stop - start, shard.shape[1]))
    return rows


def _norms(rows_TD: Tensor, first_row: int) -> Tensor:
    norm_T = torch.linalg.vector_norm(rows_TD, dim=1)
    if not (finite_T := norm_T.isfinite()).all():
        row = first_row + int((~finite_T).nonzero()[0])
        raise InputError(f"row {row:,} of the embeddings has numbers that are not finite; embed it again")
    return norm_T


class _Tile(NamedTuple):
    """Some consecutive rows."""

    rows_TD: Tensor
    """float32, on the host."""
    on_device_TD: Tensor
    norm_T: Tensor
    """Their lengths, on the host."""
    first_row: int
    half_TD: Tensor | None = None
    """On the device, in bfloat16, if somebody wants them so."""


class _Block:
    """The best rows so far of some queries, and the candidates that may replace them."""

    def __init__(self, queries_QD: NDArray[np.float32], k: int, *, device: torch.device, bfloat16: bool) -> None:
        self.uses_bfloat16 = bfloat16
        self._queries_QD, self._k = queries_QD, k
        self._coarse_DQ = torch.from_numpy(queries_QD).to(device).T
        self._half_DQ = self._coarse_DQ.bfloat16() if bfloat16 else self._coarse_DQ
        self._norm_Q = np.linalg.norm(queries_QD.astype(np.float64), axis=1)
        self._kth_Q = np.full(len(queries_QD), -np.inf)  # of the settled ones: what is below is out
        self._query: list[NDArray[np.int64]] = []
        self._row: list[NDArray[np.int64]] = []
        self._score: list[NDArray[np.float64]] = []
        self._num_settled = self._num = self._num_chosen = self._num_compared = 0
        self._scores_TQ, self._reached_TQ = torch.empty(0), torch.empty(0)

    def add(self, tile: _Tile) -> None:
        """Takes in the next rows."""
        scores_TQ = self._product(tile)
        norm = tile.norm_T.max().item()
        bound_Q = _rounding_bound(scores_TQ.dtype, tile.rows_TD.shape[1]) * norm * self._norm_Q
        least_Q = self._kth_Q - bound_Q
        if self._num == 0 and len(scores_TQ) >= self._k:  # the tile's own k-th best
            least_Q = scores_TQ.T.float().topk(self._k).values[:, -1].double().cpu().numpy() - 2 * bound_Q
        row_C, query_C = self._at_least(scores_TQ, least_Q)
        if not tile.norm_T.all():
            stands_C = tile.norm_T.numpy()[row_C] > 0
            row_C, query_C = row_C[stands_C], query_C[stands_C]
        for start in range(0, len(query_C), _CHUNK):
            part = slice(start, start + _CHUNK)
            self._score.append(_exact(self._queries_QD[query_C[part]], tile.rows_TD.numpy()[row_C[part]]))
        self._query.append(query_C)
        self._row.append(row_C + tile.first_row)
        self._num += len(query_C)
        self._num_chosen += len(query_C)
        self._num_compared += scores_TQ.numel()
        wanted = len(self._queries_QD) * self._k
        if self._num_chosen > _MOST_CHOSEN * self._num_compared + 8 * wanted:
            self.uses_bfloat16 = False  # scores lie so close together that its rounding chooses too little
        if self._num - self._num_settled > max(wanted // 2, _CHUNK) or self._num_settled == 0:
            self.settle()

    def settle(self) -> Hits:
        """Ranks the candidates, keeps the best, and returns them."""
        score_C = np.concatenate([np.empty(0), *self._score])  # none before the first row that is not of zeros
        query_C, row_C = np.concatenate(self._query), np.concatenate(self._row)
        order_C = np.lexsort((row_C, -score_C, query_C))
        query_C = query_C[order_C]
        starts_Q = np.searchsorted(query_C, np.arange(len(self._queries_QD)))
        kept_C = np.arange(len(query_C)) - starts_Q[query_C] < self._k
        query_C, order_C = query_C[kept_C], order_C[kept_C]
        row_C, score_C = row_C[order_C], score_C[order_C]
        self._query, self._row, self._score = [query_C], [row_C], [score_C]
        self._num = self._num_settled = len(query_C)
        if len(query_C) < len(self._queries_QD) * self._k:  # fewer rows than k so far
            return Hits(np.empty((0, self._k), np.float32), np.empty((0, self._k), np.int64))
        score_QK, row_QK = score_C.reshape(-1, self._k), row_C.reshape(-1, self._k)
        self._kth_Q = score_QK[:, -1].copy()
        return Hits(score_QK.astype(np.float32), row_QK)

    def _product(self, tile: _Tile) -> Tensor:
        """Inner products with all queries, in memory that the next product takes again: new memory costs a tenth.

        Those of rows of zeros are minus infinity.
        """
        rows_TD = tile.half_TD if self.uses_bfloat16 and tile.half_TD is not None else tile.on_device_TD
        queries_DQ = self._coarse_DQ if rows_TD.dtype == torch.float32 else self._half_DQ
        if self._scores_TQ.dtype != rows_TD.dtype or len(self._scores_TQ) < len(rows_TD):
            shape = (len(rows_TD), queries_DQ.shape[1])
            self._scores_TQ = torch.empty(shape, dtype=rows_TD.dtype, device=rows_TD.device)
            self._reached_TQ = torch.empty(shape, dtype=torch.bool, device=rows_TD.device)
        with _whole_float32():
            scores_TQ = torch.mm(rows_TD, queries_DQ, out=self._scores_TQ[: len(rows_TD)])
        if not tile.norm_T.all():
            scores_TQ[(tile.norm_T == 0).to(scores_TQ.device)] = -torch.inf
        return scores_TQ

    def _at_least(self, scores_TQ: Tensor, least_Q: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and query of every score that reaches its query's least one."""
        least_1Q = torch.from_numpy(least_Q).to(scores_TQ.dtype)
        least_1Q = torch.nextafter(least_1Q, torch.full_like(least_1Q, -torch.inf)).to(scores_TQ.device)
        reached_TQ = torch.ge(scores_TQ, least_1Q, out=self._reached_TQ[: len(scores_TQ)])
        if reached_TQ.is_cuda:
            flat_C = reached_TQ.flatten().nonzero()[:, 0].cpu().numpy()
        else:
            flat_C = np.flatnonzero(reached_TQ.numpy())  # fifteen times as fast as torch's
        row_C, query_C = np.divmod(flat_C, scores_TQ.shape[1])
        return row_C, query_C


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Products in float32 by float32's rounding, whatever the process allows: the bound rests on it.

    By the settings of each library: torch's `get_float32_matmul_precision` fails where somebody used these.
    """
    libraries = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul")]  # noqa: B009 - mypy knows it not
    allowed = [(library, library.fp32_precision) for library in libraries]
    try:
        for library, _ in allowed:
            library.fp32_precision = "ieee"
        yield
    finally:
        for library, precision in allowed:
            library.fp32_precision = precision


def _rounding_bound(dtype: torch.dtype, dim: int) -> float:
    """The largest error of a product of two vectors of length 1, from float32, computed in `dtype`.

    Both vectors are rounded to `dtype`, `dim` products are added in float32 in any order (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, equation 3.5, with Cauchy's inequality), and the sum is rounded to `dtype`.
    """
    unit, single = _ROUNDING[dtype], _ROUNDING[torch.float32]
    inputs = 0.0 if dtype == torch.float32 else 2 * unit + unit**2
    sums = dim * single / (1 - dim * single)
    return inputs + (1 + inputs) * sums + (0.0 if dtype == torch.float32 else unit * (1 + inputs) * (1 + sums))


def _exact(queries_CD: NDArray[np.float32], rows_CD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Inner products of pairs in float64, where a product is exact; numpy adds each row alike, wherever it stands."""
    return np.multiply(queries_CD, rows_CD, dtype=np.float64).sum(axis=1)
