"""How many wrong candidates stand before the nearest right one, exactly, by tiles of similarities.

Embeddings of any number are read tile by tile; no matrix of all similarities is stored.

Shapes: Q queries, C candidates in M different rows, P pairs of a query and a candidate that is correct for it, D
embedding, K candidates of a tile.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed.collectives import all_reduce, rank, world_size
from clipx.evaluate.mapped_rows import read_rows, take_rows

DEPTHS = (1, 5, 10)
NEVER = 2**40
"""The number of wrong candidates before the nearest right one, where there is none."""
Ties = Literal["against", "against, but of one row", "by order"]
Rows = Tensor | NDArray[np.float32]
_QUERIES, _CANDIDATES = 512, 8192  # largest tile of similarities: 16 MB of float32
_WHOLE = 2**28  # bytes of embeddings that are held on the device as a whole


def recall(
    query_QD: Rows,
    candidate_MD: Rows,
    pairs_P2: Tensor,
    *,
    group: ProcessGroup | None,
    row_C: Tensor | None = None,
    ties: Ties = "against",
) -> list[float]:
    """The fraction of queries with their nearest correct candidate among the nearest k, for k in `DEPTHS`.

    The arguments are those of `wrong_before_correct`.
    """
    wrong_Q = wrong_before_correct(query_QD, candidate_MD, pairs_P2, group=group, row_C=row_C, ties=ties)
    return [float((wrong_Q < depth).sum()) / len(wrong_Q) for depth in DEPTHS]


def wrong_before_correct(
    query_QD: Rows,
    candidate_MD: Rows,
    pairs_P2: Tensor,
    *,
    group: ProcessGroup | None,
    row_C: Tensor | None = None,
    query_row_Q: Tensor | None = None,
    ties: Ties = "against",
) -> Tensor:
    """For each query the number of wrong candidates before its best correct one, or `NEVER` if it has none.

    Every rank has all queries and candidates, and takes its share of the tiles; one all-reduce. NaN counts against the
    model.

    Args:
        pairs_P2: int64, the indices of a query and of a candidate; its device computes.
        row_C: int64, each candidate's row of `candidate_MD`; None means that they are the candidates. Candidates with
            one row have one score to the bit, and of them the one with the smaller index is nearer.
        query_row_Q: int64, each query's row of `query_QD`; None means that they are the queries.
        ties: what else is as near as the nearest correct one counts as nearer ("against" the model), or only if its
            index is smaller ("by order").

    Returns:
        int64 (Q,), the same on all ranks and for every number of them.
    """
    device = pairs_P2.device
    if ties == "against" and row_C is not None and len(row_C.unique()) < len(row_C):
        ties = "against, but of one row"
    candidates = _Candidates(_Table(candidate_MD, device), row_C)
    queries = _Table(query_QD, device)
    pairs_P2 = pairs_P2[pairs_P2[:, 0].argsort(stable=True)]
    num_queries = len(queries) if query_row_Q is None else len(query_row_Q)
    wrong_Q = torch.zeros(num_queries, dtype=torch.int64, device=device)
    # Tiles do not depend on the number of ranks, so the rounding of their products does not, either.
    for start in range(rank(group) * _QUERIES, num_queries, world_size(group) * _QUERIES):
        stop = min(start + _QUERIES, num_queries)
        tile_QD = queries.read(start, stop) if query_row_Q is None else queries.take(query_row_Q[start:stop])
        first, last = torch.searchsorted(
            pairs_P2[:, 0].contiguous(), torch.tensor([start, stop], device=device)
        ).tolist()
        correct_P2 = pairs_P2[first:last] - torch.tensor([start, 0], device=device)
        wrong_Q[start:stop] = _of_tile(tile_QD, candidates, correct_P2, ties=ties)
    return all_reduce(wrong_Q, "sum", group)


class _Table:
    """Rows of embeddings, on the device if they are few, else read from where they are."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._rows: Rows = rows
        self._device = device
        if isinstance(rows, np.ndarray) and rows.nbytes <= _WHOLE:
            self._rows = torch.from_numpy(read_rows(rows, 0, len(rows))).to(device)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> Tensor:
        if isinstance(self._rows, Tensor):
            return self._rows[start:stop]
        return torch.from_numpy(read_rows(self._rows, start, stop)).to(self._device)

    def take(self, index_Q: Tensor) -> Tensor:
        if isinstance(self._rows, Tensor):
            return self._rows[index_Q]
        return torch.from_numpy(take_rows(self._rows, index_Q.cpu().numpy())).to(self._device)


class _Tile(NamedTuple):
    """Some candidates, and how near they are to the queries."""

    score_QK: Tensor
    """float32."""
    correct_QK: Tensor
    """bool."""
    index_K: Tensor
    """int64, the candidates."""


class _Candidates:
    """Candidates in the order of their rows."""

    def __init__(self, table: _Table, row_C: Tensor | None) -> None:
        self._table = table
        self.row_C = row_C
        if row_C is not None:
            self._order_C = row_C.argsort(stable=True)
            self._sorted_C = row_C[self._order_C].contiguous()
            self._place_C = torch.empty_like(self._order_C)
            self._place_C[self._order_C] = torch.arange(len(row_C), device=row_C.device)

    def __len__(self) -> int:
        return len(self._table) if self.row_C is None else len(self.row_C)

    def tiles(self, query_QD: Tensor, correct_P2: Tensor) -> Iterator[_Tile]:
        """Yields all candidates, those of a tile of rows after those of another."""
        query_P, candidate_P = correct_P2.unbind(1)
        place_P = candidate_P if self.row_C is None else self._place_C[candidate_P]
        for start in range(0, len(self._table), _CANDIDATES):
            stop = min(start + _CANDIDATES, len(self._table))
            first, last = self._places(start, stop)
            if first == last:
                continue
            with torch.autocast(query_QD.device.type, enabled=False):  # in bf16 similar candidates would tie
                score_QM = query_QD @ self._table.read(start, stop).T
            for begin in range(first, last, _CANDIDATES):  # of one row there may be many candidates
                end = min(begin + _CANDIDATES, last)
                inside_P = (place_P >= begin) & (place_P < end)
                correct_QK = torch.zeros(len(query_QD), end - begin, dtype=torch.bool, device=query_QD.device)
                correct_QK[query_P[inside_P], place_P[inside_P] - begin] = True
                if self.row_C is None:
                    yield _Tile(score_QM, correct_QK, torch.arange(begin, end, device=query_QD.device))
                else:
                    row_K = self._sorted_C[begin:end] - start
                    yield _Tile(score_QM[:, row_K], correct_QK, self._order_C[begin:end])

    def _places(self, start: int, stop: int) -> tuple[int, int]:
        """Where the candidates of these rows begin and end."""
        if self.row_C is None:
            return start, stop
        ends = torch.tensor([start, stop], device=self.row_C.device)
        first, last = torch.searchsorted(self._sorted_C, ends).tolist()
        return first, last


def _of_tile(query_QD: Tensor, candidates: _Candidates, correct_P2: Tensor, *, ties: Ties) -> Tensor:
    """The numbers of `wrong_before_correct` of a tile of queries.

    Every tile of similarities is computed twice, once for the best and once for the count. Both have the same rounding.
    """
    best_Q = query_QD.new_full((query_QD.shape[0],), float("-inf"))
    place_Q = torch.zeros_like(best_Q, dtype=torch.int64)  # of the best correct one; no candidate is before 0
    for score_QK, correct_QK, index_K in candidates.tiles(query_QD, correct_P2):
        correct_score_QK = score_QK.masked_fill(~correct_QK, float("-inf"))
        tile_best_Q = correct_score_QK.amax(dim=1)
        if ties != "against":
            is_best_QK = correct_QK & (correct_score_QK == tile_best_Q[:, None])
            tile_place_Q = torch.where(is_best_QK, index_K, len(candidates)).amin(dim=1)
            nearer_Q = (tile_best_Q > best_Q) | ((tile_best_Q == best_Q) & (tile_place_Q < place_Q))
            place_Q = torch.where(nearer_Q, tile_place_Q, place_Q)
        best_Q = torch.maximum(best_Q, tile_best_Q)
    wrong_Q = torch.zeros_like(place_Q)
    for score_QK, correct_QK, index_K in candidates.tiles(query_QD, correct_P2):
        before_QK = ~(score_QK < best_Q[:, None])
        if ties != "against":
            later_QK = (score_QK == best_Q[:, None]) & (index_K > place_Q[:, None])
            if ties == "against, but of one row":
                assert candidates.row_C is not None
                later_QK &= candidates.row_C[index_K] == candidates.row_C[place_Q][:, None]
            before_QK &= ~later_QK
        wrong_Q += (before_QK & ~correct_QK).sum(dim=1)
    return torch.where(best_Q > float("-inf"), wrong_Q, NEVER)
