"""Averages are models like any other, equal a textbook, and are chosen by the sets that are named."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import (
    picture,
    run_config_text,
    tiny_model_config,
    tiny_pretrained,
    write_classification_set,
    write_retrieval_set,
)
from torch import Tensor
from transformers import BertConfig, PreTrainedTokenizerFast

from clipx.average.mean import checksum
from clipx.average.options import AverageOptions
from clipx.average.run import average_models
from clipx.average.scores import main_figure
from clipx.checkpoint.find import EXPORT_CONFIG
from clipx.checkpoint.state import DataOrderRecord, Progress, RunState
from clipx.checkpoint.store import CheckpointStore
from clipx.checkpoint.tensors import state_of, write_state
from clipx.config.load import dump_config
from clipx.config.model import HuggingFaceTextConfig, ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.config.schema import ModelFile
from clipx.config.yaml_text import read_yaml
from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError, RunError
from clipx.evaluate.run import evaluate_folder
from clipx.export import export_model
from clipx.export.folder import AVERAGE, require_own
from clipx.models.clip import build_model
from clipx.pretrained import Pretrained, load, start_from
from clipx.pretrained.own import WEIGHTS

TEXTS = ["a photo of a cat", "x"]
State = dict[str, Tensor]


def stored(folder: Path, pretrained: Pretrained | None = None, *, seed: int = 0) -> State:
    """A model as an average stores it."""
    pretrained = pretrained or tiny_pretrained(seed=seed)
    folder.mkdir()
    (folder / EXPORT_CONFIG).write_text(run_config_text(pretrained.config))
    state = {name: tensor.clone() for name, tensor in pretrained.model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    return state


@pytest.fixture
def three(tmp_path: Path) -> list[State]:
    return [stored(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]


def paths(folder: Path, names: str) -> tuple[Path, ...]:
    return tuple(folder / name for name in names)


def weights_of(folder: Path) -> State:
    return dict(load(folder).model.state_dict())


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
    record = average_models(options, tmp_path / "to")
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


def other(name: str) -> Pretrained:
    """A model that differs from the tiny one."""
    config = tiny_model_config()
    match name:
        case "layers":
            return tiny_pretrained(tiny_model_config(text={"layers": 2}))
        case "activation":
            return tiny_pretrained(tiny_model_config(text={"activation": "quick_gelu"}))
        case "image_size":
            return tiny_pretrained(tiny_model_config(image={"image_size": 32}))
        case "mean":
            return tiny_pretrained(tiny_model_config(image={"mean": (0.5, 0.5, 0.5)}))
        case "bias":
            return tiny_pretrained(replace(config, init_logit_bias=-1.0))
        case _:
            return tiny_pretrained(replace(config, embed_dim=16))


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("layers", "model.text.layers: 3 -> 2"),
        ("activation", "model.text.activation: gelu -> quick_gelu"),
        ("image_size", "model.image.image_size: 24 -> 32"),
        ("mean", "model.image.mean: (0.5, 0.4, 0.3) -> (0.5, 0.5, 0.5)"),
        ("bias", "only one of them has logit_bias"),
        ("embed_dim", "model.embed_dim: 24 -> 16"),
    ],
)
def test_models_of_different_architecture_have_no_mean(tmp_path: Path, name: str, difference: str) -> None:
    stored(tmp_path / "a")
    stored(tmp_path / "b", other(name))
    with pytest.raises(InputError) as caught:
        average_models(AverageOptions(models=paths(tmp_path, "ab")), tmp_path / "to")
    assert f"a and {tmp_path}/b are of different architecture: {difference}; only" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_with_broken_weights_is_named(tmp_path: Path, value: float) -> None:
    stored(tmp_path / "a")
    pretrained = tiny_pretrained(seed=1)
    with torch.no_grad():
        pretrained.model.text_tower.projection.weight[3, 2] = value
    stored(tmp_path / "b", pretrained)
    with pytest.raises(InputError, match=r"b: text_tower.projection.weight holds NaN or infinite numbers; leave this"):
        average_models(AverageOptions(models=paths(tmp_path, "ab"), weights=(1, 0)), tmp_path / "to")


def test_a_path_without_a_model_is_named_and_an_earlier_average_stays(tmp_path: Path, three: list[State]) -> None:
    options = AverageOptions(models=paths(tmp_path, "ab"))
    average_models(options, tmp_path / "to")
    before = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is neither"):
        average_models(replace(options, models=(tmp_path / "a", tmp_path / "empty")), tmp_path / "to")
    (tmp_path / "b" / WEIGHTS).write_bytes(b"short")
    with pytest.raises(InputError, match=WEIGHTS):
        average_models(options, tmp_path / "to")
    assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == before


def test_other_files_stay_and_an_average_is_replaced(tmp_path: Path, three: list[State]) -> None:
    options = AverageOptions(models=paths(tmp_path, "ab"))
    average_models(options, tmp_path / "to")
    average_models(replace(options, weights=(0, 1)), tmp_path / "to")
    assert checksum(weights_of(tmp_path / "to")) == checksum(three[1])
    (tmp_path / "to" / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    with pytest.raises(InputError, match=r"to holds notes\.txt, which no average wrote; move that away"):
        average_models(options, tmp_path / "to")
    assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == before
    with pytest.raises(InputError, match=r"a holds clipx_config.yaml, clipx_model.safetensors, which no average wrote"):
        average_models(options, tmp_path / "a")


def test_what_would_not_load_is_not_put_there(
    tmp_path: Path, three: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipx.average.write.write_weights", lambda _, folder: save_file(three[2], folder / WEIGHTS))
    with pytest.raises(RunError, match=r"was not stored as it was averaged"):
        average_models(AverageOptions(models=paths(tmp_path, "ab")), tmp_path / "to")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_the_config_says_what_went_in_and_weights_of_0_did_not(tmp_path: Path, three: list[State]) -> None:
    options = AverageOptions(models=paths(tmp_path, "bc"), weights=(1, 0), start=tmp_path / "a", alphas=(0.25,))
    average_models(options, tmp_path / "to")
    heading = (tmp_path / "to" / EXPORT_CONFIG).read_text().splitlines()[:4]
    assert heading[1] == f"# 0.75 of {tmp_path / 'a'}, weights {checksum(three[0])[:16]}"
    assert heading[2] == f"# 0.25 of {tmp_path / 'b'}, weights {checksum(three[1])[:16]}"
    assert not heading[3].startswith("#")


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


def test_no_more_than_two_models_are_there_at_a_time(
    tmp_path: Path, three: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sum, and the last one's weights, are tensors beside them."""
    models: list[weakref.ref[Pretrained]] = []
    alive: list[int] = []

    def counted(path: str, **options: Any) -> Pretrained:
        model = load(path, **options)
        models.append(weakref.ref(model))
        gc.collect()
        alive.append(sum(reference() is not None for reference in models))
        return model

    monkeypatch.setattr("clipx.average.sources.load", counted)
    average_models(AverageOptions(models=paths(tmp_path, "abc")), tmp_path / "to")
    assert alive == [1, 2, 2]


def test_the_texts_of_an_average_need_nothing_outside_its_folder(tmp_path: Path) -> None:
    name = tmp_path / "bert"
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[PAD]": 1, "cat": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(name)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertConfig(vocab_size=3, max_position_embeddings=16, pad_token_id=1, **sizes).save_pretrained(name)
    image = tiny_model_config().image
    text = HuggingFaceTextConfig(name=str(name), context_length=8, pretrained=False)
    own_tower = TransformerTextConfig(width=8, layers=1, heads=2, context_length=8, tokenizer=str(name))
    configs = {kind: ModelConfig(embed_dim=8, image=image, text=kind) for kind in (text, own_tower)}
    expected = {}
    for folder, config in zip("ab", configs.values(), strict=True):
        model = build_model(config, vocab_size=3, seed=0)
        stored(tmp_path / folder, Pretrained(model.eval(), config))
        options = AverageOptions(models=(tmp_path / folder, tmp_path / folder))
        average_models(options, tmp_path / f"{folder}-mean")
        expected[folder] = load(tmp_path / folder).encode_text(TEXTS)
    shutil.rmtree(name)
    for folder in "ab":
        moved = (tmp_path / f"{folder}-mean").rename(tmp_path / f"{folder}-moved")
        assert torch.equal(load(moved).encode_text(TEXTS), expected[folder])
        average_models(AverageOptions(models=(moved, moved)), tmp_path / f"{folder}-again")
        require_own(tmp_path / f"{folder}-again", AVERAGE)
        assert torch.equal(load(tmp_path / f"{folder}-again").encode_text(TEXTS), expected[folder])


def test_another_tokenizer_is_another_model(
    tmp_path: Path, three: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_as_it_is = load

    def renamed(path: str, **options: Any) -> Pretrained:
        model = load_as_it_is(path, **options)
        if path.endswith("b"):
            model.tokenizer = Renamed(16)
        return model

    monkeypatch.setattr("clipx.average.sources.load", renamed)
    with pytest.raises(InputError, match=r"of different architecture: the tokenizers \(clip, clip\) give other ids;"):
        average_models(AverageOptions(models=paths(tmp_path, "ab")), tmp_path / "to")


class Renamed(ClipTokenizer):
    """CLIP's, with another id for every word."""

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, lengths = super().encode(texts)
        return (tokens + 1) % self.vocab_size, lengths


def test_of_a_run_the_average_of_its_weights_is_taken_or_what_was_trained(tmp_path: Path) -> None:
    trained, averaged = tiny_pretrained(seed=1), tiny_pretrained(seed=2)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    state = state_of(
        trained.model,
        torch.optim.AdamW(trained.model.parameters()),
        average=dict(averaged.model.named_parameters()),
    )
    order = DataOrderRecord(
        fingerprint="", num_shards=1, num_samples=9, lanes=1, shuffle_window=1, global_batch_size=2, seed=0
    )
    store.publish(
        7,
        write_state(store.draft(7), state, None),
        state=RunState(progress=Progress(step=7), data_order=order, wandb_id=""),
        config_text=run_config_text(trained.config),
    )
    stored(tmp_path / "start")
    options = AverageOptions(models=(tmp_path / "run",), start=tmp_path / "start", alphas=(1.0,))
    for take, model in (("average", averaged), ("trained", trained)):
        record = average_models(replace(options, take=take), tmp_path / "to")
        assert checksum(weights_of(tmp_path / "to")) == checksum(model.model.state_dict())
        entry = record["models"][0]
        assert (entry["checkpoint"], entry["weights"]) == ("step-00000007", take)
    assert average_models(options, tmp_path / "to")["models"][0]["weights"] == "average"


def test_an_average_can_be_started_from_and_exported(tmp_path: Path, three: list[State]) -> None:
    average_models(AverageOptions(models=paths(tmp_path, "ab")), tmp_path / "to")
    expected = weights_of(tmp_path / "to")
    config = tiny_model_config()
    model = build_model(config, vocab_size=ClipTokenizer.vocab_size, seed=9)
    start_from(tmp_path / "to", model, config=config, tokenizer=ClipTokenizer(16))
    assert checksum(model.state_dict()) == checksum(expected)
    export_model(tmp_path / "to", tmp_path / "export", ["hf"])
    assert checksum(weights_of(tmp_path / "export")) == checksum(expected)


def test_of_another_librarys_models_the_config_is_the_architecture_alone(
    tmp_path: Path, three: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name / EXPORT_CONFIG).write_text(dump_config(ModelFile(model=tiny_model_config())))
    average_models(AverageOptions(models=paths(tmp_path, "ab")), tmp_path / "to")
    assert load(tmp_path / "to").config == tiny_model_config()
    assert read_yaml((tmp_path / "to" / EXPORT_CONFIG).read_text()).keys() == {"model"}
    (tmp_path / "a" / EXPORT_CONFIG).write_text("model: {image: {nam: x}}")
    with pytest.raises(InputError, match=r"model\.image\.nam=x: unknown key; the nearest known is model\.image\.name"):
        load(tmp_path / "a")
