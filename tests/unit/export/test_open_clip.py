"""Exports for open_clip: its folders come back as they were, and what it cannot build is said in one line."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from open_clip_models import MODELS, TEXT, byte_tokenizer, photographs, write_bert, write_model
from safetensors.torch import load_file
from tiny_clip import tiny_model_config, tiny_pretrained

from clipx.config.model import HuggingFaceTextConfig
from clipx.export.open_clip import CONSUMERS, problem, write
from clipx.export.options import ExportOptions
from clipx.export.parity.compare import above_limit, compare
from clipx.export.parity.ours import our_outputs
from clipx.models.clip import build_model
from clipx.pretrained import Pretrained, load
from clipx.storage.drafts import draft_of, finish

open_clip = pytest.importorskip("open_clip")
TEXTS = ["a photo of a cat", "Schön &amp; gut_, “so”", "one two three four five six seven eight nine ten" * 2]
RENAMED = ("own_varied", "timm_vit_avg_mlp")  # its class with the text's weights under another prefix


def exported(pretrained, to):
    """An export as `export_model` makes it, in a draft that is then renamed; and what open_clip computes from it."""
    pictures = photographs(4)
    with draft_of(to) as draft:
        assert problem(pretrained) is None
        write(pretrained, draft, ExportOptions())
        theirs = CONSUMERS[0].outputs(draft, pictures, TEXTS)
        finish(draft)
        draft.rename(to)
    return compare(our_outputs(pretrained, pictures, TEXTS), theirs, same_crop=[True] * 4)


@pytest.mark.parametrize("shape", MODELS)
def test_a_folder_of_open_clip_comes_back_bit_by_bit(tmp_path, shape):
    folder = write_model(tmp_path / "theirs", MODELS[shape])
    pretrained = load(folder)
    row = exported(pretrained, tmp_path / "export")
    assert above_limit(row, 1e-5) == []
    assert row["same_token_ids"] == 1.0
    before, after = (load_file(path / "open_clip_model.safetensors") for path in (folder, tmp_path / "export"))
    if shape in RENAMED:
        before, after = ({name.removeprefix("text."): one for name, one in some.items()} for some in (before, after))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    shutil.rmtree(folder)
    again = load(tmp_path / "export")  # by open_clip's files alone
    assert torch.equal(again.encode_text(TEXTS), pretrained.encode_text(TEXTS))
    assert torch.equal(again.encode_image(photographs(2)), pretrained.encode_image(photographs(2)))


def test_open_clip_finds_the_text_encoder_wherever_it_is_started_from(tmp_path, monkeypatch):
    pretrained = load(write_model(tmp_path / "theirs", MODELS["bert_mlp"]))
    exported(pretrained, tmp_path / "export")
    shutil.rmtree(tmp_path / "theirs")
    monkeypatch.chdir("/")
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'export'}")
    tokens_NL = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'export'}")(TEXTS)
    with torch.no_grad():
        found_ND = model.eval().encode_text(tokens_NL, normalize=True)
    torch.testing.assert_close(found_ND, pretrained.encode_text(TEXTS), atol=1e-5, rtol=0)
    (tmp_path / "export").rename(tmp_path / "moved")
    assert torch.equal(load(tmp_path / "moved").encode_text(TEXTS), pretrained.encode_text(TEXTS))
    config = json.loads((tmp_path / "moved" / "open_clip_config.json").read_text())["model_cfg"]
    assert config["text_cfg"]["hf_model_name"] == str(tmp_path / "export" / "text_encoder")  # to be written anew
    assert config["text_cfg"]["hf_tokenizer_name"] == "."


def test_the_tokenizer_of_another_format_stays(tmp_path):
    pretrained = load(write_model(tmp_path / "theirs", MODELS["siglip"]))
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "tokenizer_config.json").write_text("of transformers")
    write(pretrained, tmp_path / "export", ExportOptions())
    assert (tmp_path / "export" / "tokenizer_config.json").read_text() == "of transformers"
    assert not (tmp_path / "export" / "tokenizer.json").exists()


def with_text(tmp_path, **text):
    """The tiny model with a tiny BERT, or with another text tower of ours."""
    if text.pop("type", None) is None:
        return tiny_pretrained(tiny_model_config(text=text))
    write_bert(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    own = HuggingFaceTextConfig(name=str(tmp_path), pretrained=False, context_length=16, **text)
    return with_encoder(replace(tiny_model_config(), text=own))


def with_encoder(config):
    return Pretrained(build_model(config, vocab_size=1, seed=0).eval(), config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"projection": "mlp"}, "no projection of two layers"),
        ({"causal": False}, "needs a pad"),
        ({"type": "huggingface", "pool": "last"}, "does not pool a transformers text by model.text.pool=last"),
        ({"type": "huggingface", "bias": True}, "no bias"),
    ],
)
def test_texts_that_open_clip_cannot_build_are_named(tmp_path, text, message):
    why = problem(with_text(tmp_path, **text))
    assert why is not None
    assert message in why
    assert "\n" not in why


def test_an_encoder_that_open_clip_does_not_know_is_named(tmp_path):
    from transformers import DistilBertConfig

    pretrained = with_text(tmp_path, type="huggingface")
    assert problem(pretrained) is None
    pretrained.model.text_tower.encoder.config.pad_token_id = 3
    assert "pad_token_id=3, and the tokenizer pads with 0" in problem(pretrained)
    DistilBertConfig(vocab_size=420, dim=32, n_layers=1, n_heads=2, hidden_dim=8).save_pretrained(tmp_path)
    assert "open_clip has no distilbert for texts" in problem(with_encoder(pretrained.config))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"name": "test_vit", "image_size": 64, "options": {}}, "it has no LayerNorm before the blocks"),
        ({"name": "test_convnext", "options": {"depths": [1, 1, 1, 1]}, "image_size": 64}, "it is no plain ViT"),
        ({"name": "test_vit3", "image_size": 160, "options": {}, "eps": 1e-3}, "it has no class token as its only"),
        ({"projection": "mlp"}, "it has no linear projection"),
    ],
)
def test_trunks_that_a_name_does_not_say_are_refused(image, reason):
    why = problem(tiny_pretrained(tiny_model_config(image=image)))
    assert why is not None
    assert f"({reason}" in why
    assert "alone, at its own size and without options" in why


@pytest.mark.parametrize(
    "image",
    [
        {"name": "test_convnext2", "image_size": 64, "projection": "mlp"},
        {"name": "test_efficientnet", "image_size": 64},
        {"name": "test_nfnet", "image_size": 64},
        {"name": "test_vit2", "image_size": 160},
        {"name": "test_vit3", "image_size": 160, "projection": "mlp"},
    ],
    ids=lambda image: image["name"],
)
def test_trunks_of_timm_go_by_their_names(tmp_path, image):
    pretrained = tiny_pretrained(tiny_model_config(image={"options": {}} | image, text={"causal": True}))
    row = exported(pretrained, tmp_path / "export")
    assert above_limit(row, 1e-5) == []


def test_towers_of_two_activations_need_a_trunk_of_timms(tmp_path):
    quick = {"activation": "quick_gelu"}
    assert "its activation is not that of its texts" in problem(tiny_pretrained(tiny_model_config(text=quick)))
    trunk = {"name": "test_convnext", "options": {}, "image_size": 64}
    pretrained = tiny_pretrained(tiny_model_config(image=trunk, text=quick))
    assert above_limit(exported(pretrained, tmp_path / "export"), 1e-5) == []


def test_an_end_token_of_another_tokenizer_is_told_to_open_clip(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    text = {"tokenizer": str(tmp_path / "tokenizer"), "vocab_size": 49_408, "cleaning": "lower"}
    pretrained = tiny_pretrained(tiny_model_config(text=text))
    assert above_limit(exported(pretrained, tmp_path / "export"), 1e-5) == []
    config = json.loads((tmp_path / "export" / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert (config["pool_type"], config["eos_id"]) == ("eos", 2)
    assert config["tokenizer_kwargs"] == {"clean": "lower"}
    assert TEXT["context_length"] == config["context_length"]
