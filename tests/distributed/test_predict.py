"""Predictions of a table have the same bytes however many processes made them."""

from pathlib import Path

import pytest
import torch.distributed as dist
from distributed.ranks import run_ranks
from fit_rows import NUM_ROWS, row_config, row_model, write_table

from clipx.errors import InputError
from clipx.use.opened_table import open_table
from clipx.use.predict import PredictOptions, predict_table

pytest.importorskip("pyarrow")

DATA = {"train": "table.csv", "train_shards": ["a.tar"], "val_shards": ["b.tar"], "num_train": 12, "key": "sku"}


def predicted(table, outs, size):
    """On one rank: the counts of each file."""
    fitted = row_model(row_config(data=DATA))
    group = dist.group.WORLD if dist.is_initialized() else None
    rows, key = open_table(table, fitted.fit_config)
    options = PredictOptions(batch_size=size, probabilities=True, key=key)
    found = [predict_table(fitted, rows, Path(out), options, group=group) for out in outs]
    return [(each.num_rows, each.num_null, each.absent, each.problems) for each in found]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    return str(write_table(tmp_path_factory.mktemp("table")))


@pytest.mark.parametrize("size", [2, 64])  # of 64, the second rank has none
def test_ranks_write_the_bytes_of_one_process(table: str, tmp_path: Path, size: int) -> None:
    outs = [str(tmp_path / name) for name in ("out.csv", "out.parquet")]
    alone = predicted(table, outs, size)
    contents = [Path(out).read_bytes() for out in outs]
    assert [counts[:2] for counts in alone] == [(NUM_ROWS, 3)] * 2
    for out in outs:
        Path(out).unlink()
    assert run_ranks(predicted, 2, table, outs, size) == [alone] * 2
    assert [Path(out).read_bytes() for out in outs] == contents


def test_all_ranks_hear_of_a_file_that_is_not_theirs(table: str, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("a,b\n")
    with pytest.raises(InputError, match="holds no predictions of a fitted model"):
        run_ranks(predicted, 2, table, [str(tmp_path / "out.csv")], 64)
