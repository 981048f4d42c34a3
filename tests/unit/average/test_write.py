"""Averages are models like any other, in folders that need nothing outside; what is not theirs stays."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import save_file
from stored_averages import State, paths, stored, weights_of
from tiny_clip import (
    tiny_model_config,
)
from transformers import BertConfig, PreTrainedTokenizerFast

from clipx.average.options import AverageOptions
from clipx.average.run import average_models
from clipx.checkpoint.find import EXPORT_CONFIG
from clipx.config.load import dump_config
from clipx.config.model import HuggingFaceTextConfig, ModelConfig, TransformerTextConfig
from clipx.config.schema import ModelFile
from clipx.config.yaml_text import read_yaml
from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError, RunError
from clipx.export.folder import AVERAGE, require_own
from clipx.models.clip import build_model
from clipx.pretrained import Pretrained, load, start_from
from clipx.pretrained.fingerprint import checksum
from clipx.pretrained.own import WEIGHTS

TEXTS = ["a photo of a cat", "x"]


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
    with pytest.raises(InputError, match=r"a is one of the models, and would be lost"):
        average_models(AverageOptions(models=paths(tmp_path, "ab")), tmp_path / "x" / ".." / "a")
    with pytest.raises(InputError, match=r"c holds clipx_config.yaml, clipx_model.safetensors, which no average wrote"):
        average_models(options, tmp_path / "c")


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


def test_a_run_can_start_from_an_average(tmp_path: Path, three: list[State]) -> None:
    average_models(AverageOptions(models=paths(tmp_path, "ab")), tmp_path / "to")
    expected = weights_of(tmp_path / "to")
    config = tiny_model_config()
    model = build_model(config, vocab_size=ClipTokenizer.vocab_size, seed=9)
    start_from(tmp_path / "to", model, config=config, tokenizer=ClipTokenizer(16))
    assert checksum(model.state_dict()) == checksum(expected)


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
