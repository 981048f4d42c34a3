"""Work on matrices that is shared by the ranks: each matrix is computed on one, and all get what they need of it.

Under DDP every rank holds whole matrices: it computes its own, and one all-gather brings the others'. FSDP2 shards
rows: one all-to-all brings the parts of each matrix to its owner, and another one the parts of the result back.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, chain

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from clipx.distributed.collectives import all_gather, all_to_all, rank, world_size

Compute = Callable[[list[Tensor], torch.dtype], list[Tensor]]
"""Matrices to as many of the same shapes, on the same device and in the dtype asked for."""
Shape = tuple[int, int]


@cache
def owners(costs: tuple[float, ...], num_ranks: int) -> tuple[int, ...]:
    """The rank of each matrix: from the costliest to the cheapest to the rank that has least so far."""
    loads, owner = [0.0] * num_ranks, [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        owner[number] = loads.index(min(loads))
        loads[owner[number]] += costs[number]
    return tuple(owner)


class SharedMatrices:
    """The matrices in some tensors of equal placement, and who computes which.

    Args:
        tensors: of two dimensions: all on this rank, or all sharded by rows over one group (FSDP2).
        parts: how many matrices stand in each, one below the other.
        cost: of a matrix by its shape; decides how work is shared.
        group: of the ranks that hold the same tensors; of sharded ones their own group is taken.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        parts: Sequence[int],
        *,
        cost: Callable[[int, int], float],
        group: ProcessGroup | None,
    ) -> None:
        first = tensors[0]
        self.group = first.device_mesh.get_group() if isinstance(first, DTensor) else group
        self.is_sharded = isinstance(first, DTensor) and world_size(self.group) > 1
        self.device = torch.device(first.device_mesh.device_type) if isinstance(first, DTensor) else first.device
        self._rank, self._num_ranks = rank(self.group), world_size(self.group)
        self.shapes: list[Shape] = []
        self._places: list[tuple[int, int, int]] = []
        """Of each matrix its tensor, and there its first and last row (excluded)."""
        for number, (tensor, num_parts) in enumerate(zip(tensors, parts, strict=True)):
            rows, columns = tensor.shape[0] // num_parts, tensor.shape[1]
            self._places += [(number, part * rows, (part + 1) * rows) for part in range(num_parts)]
            self.shapes += [(rows, columns)] * num_parts
        self._chunks = [-(-tensor.shape[0] // self._num_ranks) for tensor in tensors]
        """Rows that FSDP2 gives every rank but the last ones, which have fewer or none."""
        self._owned: list[list[int]] = [[] for _ in range(self._num_ranks)]
        """The matrices of each rank, which their order decides."""
        for matrix, owner in enumerate(owners(tuple(cost(*shape) for shape in self.shapes), self._num_ranks)):
            self._owned[owner].append(matrix)

    def views(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """What this rank has of each matrix, without a copy; some have no rows.

        Args:
            parts: of the tensors, or of others of their shapes, what this rank holds.
        """
        if not self.is_sharded:
            return [parts[number][start:end] for number, start, end in self._places]
        views = []
        for matrix, (number, start, _) in enumerate(self._places):
            begin, end = self._rows(matrix, self._rank)
            offset = start - self._first_row(number, self._rank)
            views.append(parts[number][offset + begin : offset + end])
        return views

    def computed(self, views: list[Tensor], compute: Compute, *, dtype: torch.dtype) -> list[Tensor]:
        """Applies `compute` to the matrices, of which `views` are this rank's parts; all ranks call it.

        Args:
            views: as from `views`.
            compute: what a rank does with the matrices that it owns.
            dtype: in which results are sent, and sharded matrices too.

        Returns:
            Of each matrix's result what this rank has of the matrix.
        """
        if self._num_ranks == 1:
            own = views[0]
            results = compute([view.to(self.device) for view in views], own.dtype)
            return [result.to(own.device) for result in results]
        return self._by_rows(views, compute, dtype) if self.is_sharded else self._whole(views, compute, dtype)

    def _whole(self, views: list[Tensor], compute: Compute, dtype: torch.dtype) -> list[Tensor]:
        sizes = [[views[matrix].numel() for matrix in owned] for owned in self._owned]
        longest, mine = max(map(sum, sizes)), sizes[self._rank]
        own = views[0].new_zeros(longest, dtype=dtype)
        places = own[: sum(mine)].split(mine)
        results = compute([views[matrix] for matrix in self._owned[self._rank]], dtype)
        for place, result in zip(places, results, strict=True):
            place.view(result.shape).copy_(result)
        gathered = all_gather(own[None], self.group).to(views[0].dtype)
        found: list[Tensor] = [own] * len(views)
        for row, lengths, owned in zip(gathered, sizes, self._owned, strict=True):
            for matrix, piece in zip(owned, row[: sum(lengths)].split(lengths), strict=True):
                found[matrix] = piece.view(views[matrix].shape)
        return found

    def _by_rows(self, views: list[Tensor], compute: Compute, dtype: torch.dtype) -> list[Tensor]:
        ranks, mine = range(self._num_ranks), self._owned[self._rank]
        sent = [sum(views[matrix].numel() for matrix in owned) for owned in self._owned]
        received = [sum(self._size(matrix, source) for matrix in mine) for source in ranks]
        order = list(chain.from_iterable(self._owned))
        flat = torch.cat([views[matrix].reshape(-1) for matrix in order]).to(self.device, dtype)
        by_source = [(matrix, source) for source in ranks for matrix in mine]
        arrived = self._cut(all_to_all(flat, sent=sent, received=received, group=self.group), by_source)
        results = compute([torch.cat(arrived[place :: len(mine)]) for place in range(len(mine))], dtype)
        flat = flat.new_empty(sum(received))
        of_matrix = dict(zip(mine, results, strict=True))
        for (matrix, source), place in zip(by_source, self._cut(flat, by_source), strict=True):
            place.copy_(of_matrix[matrix][slice(*self._rows(matrix, source))])
        returned = all_to_all(flat, sent=received, received=sent, group=self.group).to(views[0].device, views[0].dtype)
        found: list[Tensor] = [returned] * len(views)
        for matrix, piece in zip(order, self._cut(returned, [(matrix, self._rank) for matrix in order]), strict=True):
            found[matrix] = piece
        return found

    def _cut(self, flat: Tensor, places: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Parts of matrices that stand one after the other, each given by its matrix and the rank that has it."""
        sizes = [self._size(matrix, holder) for matrix, holder in places]
        ends = accumulate(sizes)
        columns = (self.shapes[matrix][1] for matrix, _ in places)
        return [flat[end - size : end].view(-1, width) for size, end, width in zip(sizes, ends, columns, strict=True)]

    def _size(self, matrix: int, holder: int) -> int:
        begin, end = self._rows(matrix, holder)
        return (end - begin) * self.shapes[matrix][1]

    def _first_row(self, number: int, holder: int) -> int:
        return holder * self._chunks[number]

    def _rows(self, matrix: int, holder: int) -> tuple[int, int]:
        """The rows of a matrix that a rank has, counted within the matrix: first and last (excluded)."""
        number, start, end = self._places[matrix]
        first = self._first_row(number, holder)
        begin = min(max(first, start), end)
        return begin - start, max(begin, min(first + self._chunks[number], end)) - start
