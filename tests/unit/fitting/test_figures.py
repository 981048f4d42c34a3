"""What the model of a fit run is worth, from the results of its evaluations."""

import json
from pathlib import Path
from typing import Any

import pytest
from fit_rows import row_config

from clipx.checkpoint.best import EVAL_FOLDER, result_name
from clipx.errors import InputError
from clipx.fitting.figures import read_figures


def _write(run_dir: Path, step: int, **figures: Any) -> None:
    folder = run_dir / EVAL_FOLDER
    folder.mkdir(exist_ok=True)
    (folder / result_name("val", step)).write_text(json.dumps({"name": "val", "step": step, **figures}))


def _figures(step: int) -> dict[str, Any]:
    return {
        "shape/accuracy": step / 100,
        "shape/accuracy_without_image": 0.3,
        "price/mae_without_table": 7.5,
        "price/mae": 5.0,
        "price/mae_complete": 4.0,
        "trivial": {"shape/accuracy": 0.25},
    }


@pytest.mark.parametrize(
    ("stop", "step"),
    [(None, 90), ({"metric": "shape/accuracy"}, 90), ({"metric": "loss"}, 30)],
)
def test_figures_are_those_of_the_step_that_is_the_model(
    tmp_path: Path, stop: dict[str, str] | None, step: int
) -> None:
    for number in (30, 60, 90):
        _write(tmp_path, number, **_figures(number), loss=number / 10)
    figures = read_figures(row_config(run_dir=str(tmp_path), stop=stop))
    assert figures.step == step
    assert [(row.target, row.figure) for row in figures.rows] == [
        ("shape", "accuracy"),
        ("shape", "macro_f1"),
        ("price", "mae"),
        ("price", "r2"),
        ("tags", "macro_f1"),
        ("tags", "auroc"),
    ]
    accuracy, price = figures.rows[0], figures.rows[2]
    assert (accuracy.trivial, accuracy.all) == (0.25, step / 100)
    assert accuracy.less == {"image": 0.3, "text": None, "table": None}
    assert (price.trivial, price.less["table"], price.complete, price.all) == (None, 7.5, 4.0, 5.0)


def test_of_one_modality_nothing_is_taken_away(tmp_path: Path) -> None:
    _write(tmp_path, 5, **_figures(5))
    config = row_config(run_dir=str(tmp_path), inputs={"title": {"type": "text"}})
    assert [dict(row.less) for row in read_figures(config).rows] == [{}] * 6


def test_an_average_of_the_weights_is_the_model(tmp_path: Path) -> None:
    _write(tmp_path, 5, **_figures(5), **{"ema_shape/accuracy": 0.9})
    figures = read_figures(row_config(run_dir=str(tmp_path), ema={}))
    assert figures.rows[0].all == 0.9


def test_a_run_without_evaluation_has_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no eval/val-STEP\.json"):
        read_figures(row_config(run_dir=str(tmp_path)))
