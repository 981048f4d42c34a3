import re
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from clipx.errors import InputError
from clipx.use import search
from clipx.use.search import TooFewError, search_rows


def textbook(rows_ND: np.ndarray, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows by float64 and a full sort; rows of zeros are none."""
    rows_ND, queries_QD = rows_ND.astype(np.float64), queries_QD.astype(np.float64)
    score_QN = np.stack([(rows_ND * query_D).sum(axis=1) for query_D in queries_QD])
    score_QN[:, ~rows_ND.any(axis=1)] = -np.inf
    row_QK = np.stack([np.lexsort((np.arange(len(rows_ND)), -score_N))[:k] for score_N in score_QN])
    return np.take_along_axis(score_QN, row_QK, axis=1).astype(np.float32), row_QK


def random_rows(seed: int, count: int, dim: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(dtype)


def assert_exact(shards: list[np.ndarray], queries_QD: np.ndarray, k: int) -> None:
    score_QK, row_QK = textbook(np.concatenate(shards), queries_QD, k)
    for bfloat16 in (False, True):
        hits = search_rows(shards, queries_QD, k=k, bfloat16=bfloat16)
        np.testing.assert_array_equal(hits.row_QK, row_QK)
        np.testing.assert_array_equal(hits.score_QK, score_QK)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("k", [1, 20, 2500])
def test_it_finds_the_best_in_all_shards(dtype: type, k: int) -> None:
    """More rows than a tile has, and `k` beyond one."""
    rows = random_rows(0, 5000, 37, dtype)
    assert_exact([rows[:100], rows[100:101], rows[101:4800], rows[4800:]], random_rows(1, 3, 37), k)


def test_equal_rows_come_in_their_order() -> None:
    rows = random_rows(0, 50, 24)[np.random.default_rng(1).integers(0, 50, 6000)]
    assert_exact([rows[:2500], rows[2500:]], random_rows(2, 5, 24), 130)
    assert_exact([np.tile(rows[:1], (4500, 1))], random_rows(2, 2, 24), 30)


def test_scores_that_lie_closer_than_rounding() -> None:
    """Which products in float32 or bfloat16 alone put into another order."""
    base_D = random_rows(0, 1, 64)
    rows = (base_D + 1e-6 * random_rows(1, 6000, 64)).astype(np.float32)
    queries = random_rows(2, 16, 64)
    assert_exact([rows], queries, 25)
    order_QN = np.argsort(-(rows @ queries.T).T, axis=1, kind="stable")[:, :25]
    assert (order_QN != textbook(rows, queries, 25)[1]).any()  # the case is one


def test_many_queries_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many that the last of some are lost to the rounding of bfloat16 if nothing beside it is looked at."""
    monkeypatch.setattr(search, "_BLOCK", 128)
    assert_exact([random_rows(0, search._TILE, 32)], random_rows(1, 300, 32), 20)


@pytest.mark.parametrize("tile", [0, 1])
def test_the_worst_that_rounding_can_do(tile: int) -> None:
    """All numbers of the best row are just rounded down by bfloat16, and those of the second just up."""
    down, up = np.float32(1 + 0.499 * 2**-7), np.float32(1 + 0.501 * 2**-7)
    rows = np.full((search._TILE, 126), 0.5, np.float32)
    rows[7], rows[7, :3] = up, 1  # which makes it the second
    better = np.full((1, 126), down, np.float32)
    shards = [rows, better] if tile else [np.concatenate([rows[:-1], better])]
    assert_exact(shards, np.full((2, 126), down, np.float32), 1)


def test_numbers_of_any_size() -> None:
    rows = random_rows(0, 2100, 8) * np.float32(1e4)
    assert_exact([rows], random_rows(1, 3, 8) * np.float32(1e-3), 5)


def test_rows_of_zeros_are_never_found() -> None:
    """They stand for rows without a picture; with a score of 0 they would come before negative ones."""
    rows = -np.abs(random_rows(0, 2300, 12))
    rows[::2] = 0
    queries = np.abs(random_rows(1, 2, 12))
    assert_exact([rows], queries, 1150)
    with pytest.raises(TooFewError, match=r"-k 1151: there are only 1,150 rows to find; ask for at most so many"):
        search_rows([rows], queries, k=1151)


def test_the_first_rows_have_no_picture() -> None:
    """More of them than a tile has, and as many as there are."""
    rows = random_rows(0, 5000, 8)
    rows[:2500] = 0
    assert_exact([rows], rows[-3:], 20)
    with pytest.raises(TooFewError, match="-k 1: there are only 0 rows to find"):
        search_rows([rows[:2500]], rows[-3:], k=1)


@pytest.mark.parametrize("library", ["cuda", "mkldnn"])
def test_products_are_whole_whatever_the_process_allows(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By either of torch's two ways to say so, of which one fails after the other was used."""
    matmul = getattr(torch.backends, library).matmul
    before, seen, product = matmul.fp32_precision, [], torch.mm

    def watched(*arguments: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        seen.append(matmul.fp32_precision)
        return product(*arguments, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    rows = random_rows(0, 100, 8)
    try:
        matmul.fp32_precision = "tf32"
        assert_exact([rows], rows[:2], 3)
        assert (set(seen), matmul.fp32_precision) == ({"ieee"}, "tf32")
        matmul.fp32_precision = before
        torch.set_float32_matmul_precision("high")
        assert_exact([rows], rows[:2], 3)
        assert (set(seen), torch.get_float32_matmul_precision()) == ({"ieee"}, "high")
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


def test_what_cannot_be_searched() -> None:
    rows = random_rows(0, 2200, 8)
    for k, message in ((0, "-k 0 is not positive"), (2201, "-k 2201: there are only 2,200 rows")):
        with pytest.raises(InputError, match=message):
            search_rows([rows], rows[:1], k=k)
    with pytest.raises(InputError, match=r"the queries have 7 dimensions, and the rows \[8\]"):
        search_rows([rows], rows[:1, :7], k=1)
    with pytest.raises(InputError, match="nothing to search for"):
        search_rows([rows], rows[:0], k=1)
    with pytest.raises(InputError, match="the embedding of a query has numbers that are not finite"):
        search_rows([rows], np.full((1, 8), np.nan, np.float32), k=1)
    rows[2100, 3] = np.inf
    with pytest.raises(InputError, match=r"row 2,100 of the embeddings has numbers that are not finite"):
        search_rows([rows], rows[:1], k=1)


def resident_kib(path: Path) -> int:
    """How much of a mapped file is in the memory of this process."""
    smaps = Path("/proc/self/smaps").read_text()
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE)
    return sum(int(re.findall(r"^Rss: +(\d+)", part, re.MULTILINE)[0]) for part in parts if str(path) in part)


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the system does not say what is in memory")
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_memory_maps_give_their_pages_back(tmp_path: Path, dtype: type) -> None:
    """While a search lasts, one tile of a file is in memory, and none when it is over."""
    np.save(tmp_path / "0.npy", np.ones((20_000, 64), dtype))
    rows, seen = np.load(tmp_path / "0.npy", mmap_mode="r"), []
    norms = search._norms

    def watched(rows_TD: torch.Tensor, first_row: int) -> torch.Tensor:
        norm_T = norms(rows_TD, first_row)
        seen.append(resident_kib(tmp_path / "0.npy"))
        return norm_T

    with patch.object(search, "_norms", watched):
        assert search_rows([rows], np.ones((1, 64), np.float32), k=3).row_QK.tolist() == [[0, 1, 2]]
    assert 0 < max(seen) <= 3 * search._TILE * 64 * np.dtype(dtype).itemsize // 1024
    assert resident_kib(tmp_path / "0.npy") == 0
    assert rows.all()
    assert resident_kib(tmp_path / "0.npy") > 0  # the measure sees what is read in the ordinary way
