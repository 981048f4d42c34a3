"""Which configs describe the same function of equal weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_clip import tiny_model_config

from clipx.config.model import HuggingFaceTextConfig, ModelConfig
from clipx.models.clip import CLIP, build_model
from clipx.models.differences import model_differences

VOCABULARY = 40


@pytest.fixture
def encoder(tmp_path: Path) -> Callable[..., str]:
    """The folder of a BERT with these settings."""

    def save(name: str, **settings: Any) -> str:
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        config = transformers.BertConfig(
            **{**shape, "vocab_size": VOCABULARY, "max_position_embeddings": 16, **settings}
        )
        config.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def built(folder: str, **settings: Any) -> tuple[ModelConfig, CLIP]:
    text = HuggingFaceTextConfig(name=folder, pretrained=False, context_length=9, **settings)
    config = replace(tiny_model_config(), text=text)
    return config, build_model(config, vocab_size=VOCABULARY, seed=0)


def test_an_encoder_is_known_by_what_it_computes_and_not_by_its_folder(encoder: Callable[..., str]) -> None:
    before, model_before = built(encoder("one"))

    def changed(name: str, pool: str = "mean", **settings: Any) -> set[str]:
        config, model = built(encoder(name, **settings), pool=pool)
        return set(model_differences(config, model, before=before, model_before=model_before))

    assert changed("copy", hidden_dropout_prob=0.3) == set()
    assert changed("relu", hidden_act="relu") == {"text.name"}
    assert changed("heads", num_attention_heads=4) == {"text.name"}
    assert changed("eps", layer_norm_eps=1e-3) == {"text.name"}
    assert changed("pool", pool="cls") == {"text.pool"}


def test_what_null_stands_for_may_be_written_out() -> None:
    image = {"eps": 1e-5, "projection": "linear"}  # timm's own, and the model's
    text = {"projection": "linear", "cleaning": "lower"}
    before, config = tiny_model_config(), tiny_model_config(image=image, text=text)
    assert changed_keys(config, before) == set() == changed_keys(before, config)
    assert changed_keys(replace(config, projection="none"), before) == set()  # which holds for no tower
    other = tiny_model_config(image={"eps": 1e-6}, text={"cleaning": "whitespace", "bias": True})
    assert changed_keys(other, before) == {"image.eps", "text.cleaning", "text.bias"}
    both = replace(before, projection="mlp")
    assert changed_keys(both, before) == {"image.projection", "text.projection"}


def changed_keys(config: ModelConfig, before: ModelConfig) -> set[str]:
    models = [build_model(one, vocab_size=VOCABULARY, seed=0) for one in (config, before)]
    return set(model_differences(config, models[0], before=before, model_before=models[1]))
