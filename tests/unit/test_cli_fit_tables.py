"""The table with which `clipx fit` ends, in a terminal of 80 columns."""

import json
from pathlib import Path

import pytest
from fit_rows import row_config

from clipx.checkpoint.best import EVAL_FOLDER, result_name
from clipx.cli.fit_tables import print_scores


def test_names_and_numbers_of_three_kinds_of_input_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    of = {"shape/macro_f1": -0.125, "price/mae": 23456.5, "price/r2": -0.0625, "tags/auroc": 0.5}
    parts = ("complete", "without_image", "without_text", "without_table")
    figures = of | {f"{name}_{part}": value for name, value in of.items() for part in parts}
    (tmp_path / EVAL_FOLDER).mkdir()
    (tmp_path / EVAL_FOLDER / result_name("val", 9)).write_text(
        json.dumps({"name": "val", "step": 9, "trivial": of} | figures)
    )
    print_scores(row_config(run_dir=str(tmp_path)))
    table = capsys.readouterr().out.partition("trivial:")[0]
    assert "…" not in table
    for word in ("accuracy", "macro_f1", "auroc", "without", "picture", "table", "inputs", "rows"):
        assert word in table
    assert table.count("23,456") == 6
    assert max(map(len, table.splitlines())) <= 80
