"""What is averaged: models of one architecture, whole, one at a time."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stored_averages import State, paths, stored, weights_of
from tiny_clip import (
    run_config_text,
    tiny_model_config,
    tiny_pretrained,
)
from torch import Tensor

from clipx.average.options import AverageOptions
from clipx.average.run import average_models
from clipx.average.sources import Sources
from clipx.checkpoint.find import find_model
from clipx.checkpoint.state import DataOrderRecord, Progress, RunState
from clipx.checkpoint.store import CheckpointStore
from clipx.checkpoint.tensors import state_of, write_state
from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError
from clipx.pretrained import Pretrained, load
from clipx.pretrained.fingerprint import checksum


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


def test_a_model_has_the_name_that_was_given_to_it(
    tmp_path: Path, three: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_model(tmp_path / "a")
    monkeypatch.setattr("clipx.average.sources.find_model", lambda _: found)
    for given in ("hf://org/name@main", "s3://bucket/run", str(tmp_path / "a"), "a"):
        assert Sources(take=None).load(Path(given))[1]["model"] == given


def test_no_more_than_two_models_are_there_at_a_time(
    tmp_path: Path, three: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sum, and the last one's weights, are tensors beside them."""
    models: list[weakref.ref[Pretrained]] = []
    alive: list[int] = []

    def counted(path: str, **options: Any) -> Pretrained:
        model = load(path, **options)
        models.append(weakref.ref(model))
        alive.append(sum(reference() is not None for reference in models))
        return model

    monkeypatch.setattr("clipx.average.sources.load", counted)
    average_models(AverageOptions(models=paths(tmp_path, "abc")), tmp_path / "to")
    assert alive == [1, 2, 2]


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
