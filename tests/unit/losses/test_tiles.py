"""Tiles cover every similarity once, within their size, and know where the true pairs are."""

from dataclasses import replace

import pytest
import torch

from clipx.losses.exchange import Columns, Ring
from clipx.losses.tiles import Grid, Tile, dense_ids


def column_slices(exchange: str, world_size: int, batch_size: int, tile_size: int) -> list[Columns]:
    """The slices of one rank, without a process group: a ring brings one owner at a time, a gather a part of all."""
    size = tile_size if exchange == "ring" else max(1, tile_size // world_size)
    parts = [slice(start, min(start + size, batch_size)) for start in range(0, batch_size, size)]
    if exchange == "gather":
        return [Columns(slice(0, world_size), part) for part in parts]
    return [Columns(slice(owner, owner + 1), part) for owner in range(world_size) for part in parts]


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("tile_size", [1, 3, 4, 64])
def test_tiles_cover_each_similarity_once_and_find_the_pairs(
    exchange: str, world_size: int, batch_size: int, tile_size: int
) -> None:
    rank = world_size - 1
    grid = Grid(rank=rank, world_size=world_size, batch_size=batch_size, tile_size=tile_size)
    size = grid.global_batch_size
    place_BG = torch.arange(batch_size * size).view(batch_size, size)
    seen, pairs = [], {}
    for columns in column_slices(exchange, world_size, batch_size, tile_size):
        index_N = grid.take(torch.arange(size), columns)
        assert len(index_N) == len(columns)
        for rows in grid.row_slices(len(columns)):
            tile = Tile(grid, rows, columns)
            place_RN = place_BG[rows][:, index_N]
            assert place_RN.numel() <= max(tile_size**2, world_size)
            assert max(place_RN.shape) <= max(tile_size, world_size)
            seen.extend(place_RN.flatten().tolist())
            local = range(rows.start + tile.pair_rows.start, rows.start + tile.pair_rows.stop)
            pairs |= dict(zip(local, tile.pairs(place_RN).tolist(), strict=True))
    assert sorted(seen) == list(range(batch_size * size))
    assert pairs == {i: int(place_BG[i, rank * batch_size + i]) for i in range(batch_size)}


def test_alone_a_ring_brings_its_own_texts_and_keeps_their_gradient() -> None:
    text_BD = torch.randn(7, 3, dtype=torch.bfloat16)
    ring = Ring(text_BD, slice_size=3, group=None)
    places = []
    for columns, text_ND, gradient_ND in ring.backward():
        places.append(columns.places)
        assert torch.equal(text_ND, text_BD[columns.places])
        gradient_ND.add_(text_ND)
    assert places == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert ring.text_gradient().dtype == torch.float32
    assert torch.equal(ring.text_gradient(), text_BD.float())


def test_dense_ids_are_equal_where_ids_are() -> None:
    ids_G = torch.tensor([2**40, 5, -3, 2**40, 5 + 2**32, 5])
    dense_G = dense_ids(ids_G)
    assert dense_G.dtype == torch.int32
    assert dense_G.min() >= 0
    assert torch.equal(dense_G[:, None] == dense_G, ids_G[:, None] == ids_G)


def test_kernels_have_ids_that_leave_out_nothing_where_none_were_given() -> None:
    ids_G, positive_ids_G = torch.tensor([0, 1, 1, 3]), torch.tensor([0, 1, 2, 2])
    cpu, grid = torch.device("cpu"), Grid(rank=0, world_size=2, batch_size=2, tile_size=4)
    assert grid.for_kernels(2, cpu).tile_size == 8
    assert torch.equal(grid.for_kernels(2, cpu).ids_G, torch.arange(4))  # type: ignore[arg-type]
    assert replace(grid, positive_ids_G=positive_ids_G).for_kernels(2, cpu).ids_G is positive_ids_G
    assert replace(grid, ids_G=ids_G, positive_ids_G=positive_ids_G).for_kernels(2, cpu).ids_G is ids_G
