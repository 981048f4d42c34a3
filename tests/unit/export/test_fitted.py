"""The export of a fitted model: what its program computes, what the folder says, and what is refused.

One model is exported, in `make test-full`; the program of many is compared before it is converted.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_runs import NUM_VAL, tiny_fit, write_table_shards
from fitted_models import INPUTS, TARGETS, fitted, resolved_config, stored
from tiny_clip import picture

from clipx.cli.export import _print_parity
from clipx.errors import InputError, RunError
from clipx.export import export_model
from clipx.export import fitted as fitted_export
from clipx.export.fitted_graph import FittedGraph
from clipx.export.fitted_settings import fitted_settings
from clipx.export.options import ExportOptions
from clipx.export.parity.fitted import faults, graph_inputs, with_other_absent
from clipx.export.parity.fitted_samples import FittedRow, drawn_rows, stored_rows
from clipx.export.parity.samples import drawn_samples
from clipx.pretrained import load_fitted
from clipx.pretrained.fitted import Fitted

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

exporting = pytest.mark.full  # its fixture converts a whole model to two formats
FUSIONS = ("weighted_sum", "concat", "gated", "bilinear", "attention", "late")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Path, dict[str, Any]]:
    """A model with inputs and targets of every kind, the folder, and what parity.json says."""
    model, folder = fitted(), tmp_path_factory.mktemp("fitted")
    parity = export_model(stored(folder / "source", model), folder / "export")
    return model, folder / "export", parity


def rows_of(model: Fitted) -> list[FittedRow]:
    """Rows with every pattern of absent inputs."""
    config = model.fit_config
    return list(drawn_rows(config, drawn_samples(config.model.image.image_size)).rows)


def serving(model: Fitted, folder: Path) -> Path:
    """The files from which inputs of the program are made, without the program."""
    folder.mkdir()
    fitted_export.write_serving_files(model, folder)
    return folder


@torch.no_grad()
def by_graph(model: Fitted, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the program before it is one."""
    outputs = FittedGraph(model)(**{name: torch.from_numpy(rows) for name, rows in inputs.items()})
    return {name: rows.numpy() for name, rows in outputs.items()}


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


@exporting
def test_every_consumer_was_compared_and_is_within_the_limit(
    exported: tuple[Fitted, Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, parity = exported
    assert {name: row["checked"] for name, row in parity["consumers"].items()} == {
        "onnxruntime": True,
        "torch.export": True,
    }
    for row in parity["consumers"].values():
        assert row["rows"] >= 21
        assert row["texts"] < row["rows"] > row["pictures"]
        assert max(row["largest_difference"].values()) < 1e-4
        assert set(row["largest_difference"]) == set(TARGETS)
        assert row["changed_by_absent"] == 0
    assert json.loads((folder / "parity.json").read_text())["consumers"] == parity["consumers"]
    _print_parity(parity, folder)
    rows, pictures, texts = (parity[name] for name in ("rows", "pictures", "texts"))
    assert f"compared on {rows} rows with {pictures} pictures and {texts} texts: " in capsys.readouterr().out


@exporting
def test_the_json_names_what_the_graph_has(exported: tuple[Fitted, Path, dict[str, Any]]) -> None:
    _, folder, _ = exported
    told = json.loads((folder / "fitted.json").read_text())
    session = onnxruntime.InferenceSession(folder / "fitted.onnx", providers=["CPUExecutionProvider"])
    types = {"uint8": "uint8", "int64": "int64", "float": "float32", "double": "float64"}
    for values, described in ((session.get_inputs(), told["inputs"]), (session.get_outputs(), told["outputs"])):
        assert {value.name for value in values} == set(described)
        for value in values:
            shape = [axis if isinstance(axis, int) else axis.split(":")[0] for axis in value.shape]
            assert (types[value.type[7:-1]], shape) == (described[value.name]["dtype"], described[value.name]["shape"])
    assert told["inputs"]["categories"]["classes"] == [["corner", "market"]]
    assert told["outputs"]["category_probabilities"]["classes"] == ["ball", "cup", "hat"]
    assert told["outputs"]["tags_probabilities"]["labels"] == ["new", "sale"]


@exporting
def test_the_export_is_a_model_of_clipx(exported: tuple[Fitted, Path, dict[str, Any]]) -> None:
    model, folder, _ = exported
    row = {"photo": picture(3), "title": "a red cup", "brand": None, "weight": 1e6, "height": None, "shop": "corner"}
    (wanted,), (found,) = (some.predict(row, probabilities=True) for some in (model, load_fitted(folder)))
    assert found == wanted
    assert found["present"] == ["photo", "title", "weight", "shop"]


@exporting
def test_one_row_is_predicted_as_among_others(exported: tuple[Fitted, Path, dict[str, Any]]) -> None:
    model, folder, _ = exported
    inputs = graph_inputs(folder, rows_of(model))
    session = onnxruntime.InferenceSession(folder / "fitted.onnx", providers=["CPUExecutionProvider"])
    together = session.run(None, inputs)
    alone = session.run(None, {name: rows[4:5] for name, rows in inputs.items()})
    for many, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(many[4:5], one, rtol=1e-5, atol=1e-5)


@exporting
def test_code_on_the_card_runs_with_one_result(
    exported: tuple[Fitted, Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, folder, _ = exported
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    picture(1).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"With (.*?):\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert [name for name, _ in blocks] == ["clipx", "ONNX Runtime", "torch.export"]
    for _, code in blocks:
        exec(code, {})
    prices = [float(value) for value in re.findall(r"'price(?:_value)?': \D*([\d.]+)", capsys.readouterr().out)]
    assert len(prices) == 3
    assert max(prices) - min(prices) < 1e-3 * prices[0]


@pytest.mark.parametrize(
    ("fusion", "stand_in"),
    [
        *(pytest.param(fusion, "learned", marks=pytest.mark.full) for fusion in FUSIONS if fusion != "late"),
        *(("late", "learned"), ("gated", "translated")),
    ],
)
def test_the_graph_computes_what_the_model_predicts(fusion: str, stand_in: str, tmp_path: Path) -> None:
    model = fitted(resolved_config(fusion=fusion, absent={"stand_in": stand_in}))
    rows = rows_of(model)
    inputs = graph_inputs(serving(model, tmp_path / "files"), rows)
    found = by_graph(model, inputs)
    assert_close(found, fitted_export.our_outputs(model, rows))
    noisy = by_graph(model, with_other_absent(inputs, model.fit_config.modalities))
    assert all(np.array_equal(noisy[name], values) for name, values in found.items())
    swapped = by_graph(model, {**inputs, "presence": inputs["presence"][::-1].copy()})
    assert not np.allclose(swapped["size_value"], found["size_value"])  # presence is what counts


@pytest.mark.parametrize("names", [("title",), ("photo",), ("weight", "shop"), ("photo", "height")])
def test_a_model_without_some_inputs_has_no_place_for_them(names: tuple[str, ...], tmp_path: Path) -> None:
    model = fitted(resolved_config({name: INPUTS[name] for name in names}))
    inputs = graph_inputs(serving(model, tmp_path / "files"), rows_of(model))
    assert list(inputs) == list(fitted_settings(model.fit_config)["inputs"])
    assert_close(by_graph(model, inputs), fitted_export.our_outputs(model, rows_of(model)))


def test_padding_that_counts_as_text_is_part_of_it(tmp_path: Path) -> None:
    text = {"pad": 16, "pool": "last", "causal": False, "bias": True}
    model = fitted(resolved_config(text=text))
    inputs = graph_inputs(serving(model, tmp_path / "files"), rows_of(model))
    assert "attention_mask" not in inputs
    assert inputs["input_ids"].shape[1] == 16
    assert_close(by_graph(model, inputs), fitted_export.our_outputs(model, rows_of(model)))


def test_rows_that_were_held_out_are_compared_where_they_are(tmp_path: Path) -> None:
    config = tiny_fit(tmp_path / "run", write_table_shards(tmp_path / "table"))
    samples = stored_rows(config)
    assert samples is not None
    assert (samples.origin, len(samples.rows)) == ("rows that were held out", NUM_VAL)
    assert {tuple(map(row.has, config.modalities)) for row in samples.rows} >= {
        (True, True, True),
        (False, True, False),
        (True, False, False),
        (False, False, True),
    }
    assert all(any(map(row.has, config.modalities)) for row in samples.rows)
    assert stored_rows(tiny_fit(tmp_path / "run", tmp_path / "elsewhere")) is None


def test_formats_and_options_of_towers_are_refused(tmp_path: Path) -> None:
    model = stored(tmp_path / "source", fitted())
    with pytest.raises(
        InputError, match=r"cannot be exported to hf: it predicts columns of a table, .*--format onnx,pt2"
    ):
        export_model(model, tmp_path / "export", ["hf"])
    with pytest.raises(InputError, match=r"^--only is for towers"):
        export_model(model, tmp_path / "export", ["onnx"], options=ExportOptions(only="image"))
    with pytest.raises(InputError, match=r"^--int8 is for towers"):
        export_model(model, tmp_path / "export", ["onnx"], options=ExportOptions(int8=True))
    assert not (tmp_path / "export").exists()


@exporting
def test_what_differs_ends_the_export(
    exported: tuple[Fitted, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_outputs(model: Fitted, rows: list[FittedRow]) -> dict[str, np.ndarray]:
        return {name: 1.001 * values for name, values in own_outputs(model, rows).items()}

    own_outputs = fitted_export.our_outputs
    model, folder, _ = exported
    samples = drawn_rows(model.fit_config, drawn_samples(24))
    fitted_export.check_fitted(model, folder, ["onnx"], samples)
    monkeypatch.setattr(fitted_export, "our_outputs", other_outputs)
    with pytest.raises(RunError, match=r"^onnxruntime .* computes something else: category by 0.00"):
        fitted_export.check_fitted(model, folder, ["onnx"], samples)


def test_what_an_absent_input_changes_is_a_fault() -> None:
    assert faults({"largest_difference": {"a": 1e-6, "b": float("nan")}, "changed_by_absent": 2}) == [
        "b by nan",
        "2 numbers that change with what stands in the place of an absent input",
    ]
