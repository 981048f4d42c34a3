"""Averages equal a textbook, and are chosen by the sets that are named."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_averages import State, paths, stored, weights_of
from tiny_clip import picture, tiny_pretrained, write_classification_set, write_retrieval_set

from clipx.average.options import AverageOptions
from clipx.average.run import average_models
from clipx.average.scores import main_figure
from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.errors import InputError
from clipx.evaluate.run import evaluate_folder
from clipx.pretrained import Pretrained, load
from clipx.pretrained.fingerprint import checksum
from clipx.pretrained.own import WEIGHTS

TEXTS = ["a photo of a cat", "x"]


def textbook(states: Sequence[State], shares: Sequence[float]) -> State:
    """Each weight summed in float64, and rounded once."""
    return {
        name: sum(share * state[name].double() for share, state in zip(shares, states, strict=True)).float()  # type: ignore[union-attr]
        for name in states[0]
    }


def test_the_mean_is_the_textbooks_and_a_model_like_any_other(tmp_path: Path, three: list[State]) -> None:
    to = tmp_path / "deep" / "soup"
    record = average_models(AverageOptions(models=paths(tmp_path, "abc"), weights=(1, 2, 1)), to)
    expected = textbook(three, (0.25, 0.5, 0.25))
    loaded = load(to)
    assert checksum(loaded.model.state_dict()) == checksum(expected)
    assert torch.isfinite(loaded.encode_text(TEXTS)).all()
    assert torch.isfinite(loaded.encode_image(picture(0))).all()
    assert json.loads((to / "average.json").read_text()) == record
    assert [entry["share"] for entry in record["models"]] == [0.25, 0.5, 0.25]
    assert [entry["sha256"] for entry in record["models"]] == [checksum(state) for state in three]
    assert [path.name for path in to.parent.iterdir()] == ["soup"]
    again = average_models(AverageOptions(models=(to, tmp_path / "a"), weights=(1, 0)), tmp_path / "again")
    assert checksum(weights_of(tmp_path / "again")) == checksum(expected) == again["models"][0]["sha256"]


@pytest.mark.parametrize(("alpha", "end"), [(0.0, 0), (1.0, 1)])
def test_the_ends_of_the_way_are_the_models_bit_for_bit(
    tmp_path: Path, three: list[State], alpha: float, end: int
) -> None:
    options = AverageOptions(models=paths(tmp_path, "b"), start=tmp_path / "a", alphas=(alpha,))
    average_models(options, tmp_path / "to")
    assert checksum(load_file(tmp_path / "to" / WEIGHTS)) == checksum(three[end])


def test_a_way_leads_to_the_mean_of_several_and_beyond(tmp_path: Path, three: list[State]) -> None:
    options = AverageOptions(
        models=paths(tmp_path, "bc"), weights=(3, 1), start=tmp_path / "a", alphas=(1.5,), extrapolate=True
    )
    record = average_models(options, tmp_path / "to")
    assert checksum(weights_of(tmp_path / "to")) == checksum(textbook(three, (-0.5, 1.125, 0.375)))
    assert (record["alpha"], record["start"]["sha256"]) == (1.5, checksum(three[0]))


def graded(monkeypatch: pytest.MonkeyPatch, grade: Callable[[State], Sequence[float]], sets: Sequence[Path]) -> None:
    """Puts grades of the weights in the place of evaluations; the first set's is an accuracy, others' are recalls."""

    def evaluate_folder(frame: Pretrained, folder: Path, **_: object) -> dict[str, float]:
        figure = grade(dict(frame.model.state_dict()))[sets.index(folder)]
        if folder == sets[0]:
            return {"acc1": figure, "acc5": 1.0}
        return {"image_to_text_recall@10": figure - 0.1, "text_to_image_recall@10": figure + 0.1}

    monkeypatch.setattr("clipx.average.scores.evaluate_folder", evaluate_folder)


def scale_of(state: State) -> float:
    return float(state["log_logit_scale"])


def with_scale(folder: Path, value: float) -> None:
    pretrained = tiny_pretrained()
    with torch.no_grad():
        pretrained.model.log_logit_scale.fill_(value)
    stored(folder, pretrained)


def test_the_best_mean_over_all_sets_is_kept_and_of_equals_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scale(tmp_path / "a", 0.0)
    with_scale(tmp_path / "b", 1.0)
    sets = paths(tmp_path, "xy")
    graded(monkeypatch, lambda state: (1 - scale_of(state) ** 2, min(scale_of(state), 0.5)), sets)
    alphas = (0.0, 0.25, 0.5, 0.75, 1.0)
    options = AverageOptions(models=paths(tmp_path, "b"), start=tmp_path / "a", alphas=alphas, on=sets)
    told: list[str] = []
    record = average_models(options, tmp_path / "to", on_scores=lambda name, _: told.append(name))
    assert told == ["alpha 0", "alpha 0.25", "alpha 0.5", "alpha 0.75", "alpha 1"]
    assert [row["alpha"] for row in record["alphas"]] == list(alphas)
    assert [row["mean"] for row in record["alphas"]] == pytest.approx([0.5, 0.59375, 0.625, 0.46875, 0.25])
    assert list(record["alphas"][1]["scores"].values()) == pytest.approx([0.9375, 0.25])
    assert record["alpha"] == 0.5
    assert scale_of(weights_of(tmp_path / "to")) == 0.5
    graded(monkeypatch, lambda state: (0.5, 0.5), sets)
    assert average_models(replace(options, alphas=(0.75, 0.25)), tmp_path / "to")["alpha"] == 0.75


def test_a_greedy_soup_begins_with_the_best_and_takes_what_does_not_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grade is the nearness to 0.5; 0.45 is the best, with 0.6 it is nearer, with 0.2 or 1 it would not be."""
    for name, value in zip("abcd", (1.0, 0.2, 0.6, 0.45), strict=True):
        with_scale(tmp_path / name, value)
    sets = paths(tmp_path, "x")
    graded(monkeypatch, lambda state: (1 - abs(scale_of(state) - 0.5),), sets)
    options = AverageOptions(models=paths(tmp_path, "abcd"), greedy=True, on=sets)
    record = average_models(options, tmp_path / "to")
    assert [entry["taken"] for entry in record["models"]] == [False, False, True, True]
    assert [entry["share"] for entry in record["models"]] == [0, 0, 0.5, 0.5]
    with_it = [1 - abs(mean - 0.5) for mean in (2.05 / 3, 1.25 / 3, 1.05 / 2, 0.45)]
    assert [entry["mean_with_it"] for entry in record["models"]] == pytest.approx(with_it)
    assert record["mean"] == pytest.approx(with_it[2])
    assert scale_of(weights_of(tmp_path / "to")) == pytest.approx(0.525)
    graded(monkeypatch, lambda state: (0.5,), sets)
    record = average_models(replace(options, models=paths(tmp_path, "ab")), tmp_path / "to")
    assert [entry["share"] for entry in record["models"]] == [0.5, 0.5]


def test_figures_are_those_of_evaluations(tmp_path: Path, three: list[State]) -> None:
    classes = write_classification_set(tmp_path / "classes", [0, 1, 2, 1], class_names=["owl", "fox", "cat"])
    pairs = write_retrieval_set(tmp_path / "pairs", [[f"number {i}", f"a {i}"] for i in range(12)])
    options = AverageOptions(models=paths(tmp_path, "b"), start=tmp_path / "a", alphas=(0.0, 1.0), on=(classes, pairs))
    record = average_models(options, tmp_path / "to")
    for row, name in zip(record["alphas"], "ab", strict=True):
        model = load(tmp_path / name)
        for folder in (classes, pairs):
            metrics = evaluate_folder(model, folder, batch_size=256, group=None)
            assert row["scores"][str(folder)] == main_figure(metrics)
    assert main_figure({"image_to_text_recall@10": 0.25, "text_to_image_recall@10": 0.75}) == 0.5
    assert main_figure({"acc1": 0.25, "acc5": 0.75}) == 0.25
    assert main_figure({"mean_average_precision": 0.125}) == 0.125


def test_counters_of_batch_norms_are_kept_whole_and_their_variances_above_0(tmp_path: Path) -> None:
    config = ModelConfig(
        embed_dim=8,
        image=TimmImageConfig(name="test_resnet", image_size=32),
        text=TransformerTextConfig(width=8, layers=1, heads=1, context_length=4),
    )
    large = 2**53 + 1
    states = []
    for name, count, variance in (("a", 3, 1.0), ("b", large, 4.0)):
        pretrained = tiny_pretrained(config)
        norm = pretrained.model.image_tower.trunk.bn1
        norm.num_batches_tracked.fill_(count)
        norm.running_var.fill_(variance)
        states.append(stored(tmp_path / name, pretrained))
    options = AverageOptions(models=paths(tmp_path, "b"), start=tmp_path / "a", alphas=(1.0,))
    average_models(options, tmp_path / "to")
    assert checksum(weights_of(tmp_path / "to")) == checksum(states[1])
    average_models(replace(options, alphas=(0.5,)), tmp_path / "to")
    between = weights_of(tmp_path / "to")
    assert between["image_tower.trunk.bn1.num_batches_tracked"].item() == 3
    assert between["image_tower.trunk.bn1.running_var"][0].item() == 2.5
    with pytest.raises(InputError, match=r"bn1.running_var is a variance, and would be below 0; give alphas nearer"):
        average_models(replace(options, alphas=(-0.5,), extrapolate=True), tmp_path / "to")
    states[1]["image_tower.trunk.bn1.running_mean"][0] = torch.nan
    save_file(states[1], tmp_path / "b" / WEIGHTS)
    with pytest.raises(InputError, match=r"b: image_tower.trunk.bn1.running_mean holds NaN or infinite numbers; leave"):
        average_models(options, tmp_path / "to")
