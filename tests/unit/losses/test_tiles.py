"""The grid: tiles cover every similarity once, within their size, and know where the true pairs are."""

import pytest
import torch

from clipx.losses.tiles import Grid


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("tile_size", [1, 3, 4, 64])
def test_tiles_cover_each_similarity_once_and_find_the_pairs(world_size: int, batch_size: int, tile_size: int) -> None:
    rank = world_size - 1
    grid = Grid(rank, world_size, batch_size, tile_size, ids_G=None, positive_ids_G=None)
    size = grid.global_batch_size
    place_BG = torch.arange(batch_size * size).view(batch_size, size)
    seen, pairs = [], {}
    for columns in grid.column_slices():
        index_N = grid.columns(torch.arange(size), columns)
        for rows in grid.row_slices(len(index_N)):
            tile_RN = place_BG[rows][:, index_N]
            assert tile_RN.numel() <= max(tile_size**2, world_size)
            assert max(tile_RN.shape) <= max(tile_size, world_size)
            seen.extend(tile_RN.flatten().tolist())
            local = grid.pair_rows(rows, columns)
            found = grid.pairs(tile_RN, rows, columns).tolist()
            pairs |= dict(zip(range(local.start, local.stop), found, strict=True))
    assert sorted(seen) == list(range(batch_size * size))
    assert pairs == {i: int(place_BG[i, rank * batch_size + i]) for i in range(batch_size)}
