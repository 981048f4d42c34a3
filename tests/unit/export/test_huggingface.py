"""Exports for transformers: of folders that came from there, and of models trained here, with their own tokenizers."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_clip import run_config_text, tiny_model_config, tiny_pretrained
from transformers_folders import clip_folder, library_results, photographs, siglip_folder, varied_strings

from clipx.checkpoint.find import EXPORT_CONFIG
from clipx.config.model import ModelConfig
from clipx.export import export_model, huggingface
from clipx.export.options import ExportOptions
from clipx.pretrained import Pretrained, load

OPTIONS = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
SIGLIP_IMAGE = {"name": "vit_base_patch16_siglip_224", "projection": "none", "options": OPTIONS, "resize": "squash"}
SIGLIP_TEXT = {"causal": False, "pool": "last", "pad": 16, "bias": True, "eps": 1e-6}


def siglip_config(**changes: Any) -> ModelConfig:
    """The tiny model in SigLIP's shape, with CLIP's tokenizer."""
    config = tiny_model_config(image=SIGLIP_IMAGE, text=SIGLIP_TEXT)
    return replace(config, **{"init_logit_bias": -7.5} | changes)


def written(pretrained: Pretrained, folder: Path) -> Path:
    """An export that nobody compared, as of a run."""
    folder.mkdir()
    (folder / EXPORT_CONFIG).write_text(run_config_text(pretrained.config))
    huggingface.write(pretrained, folder, ExportOptions())
    return folder


def assert_library_agrees(pretrained: Pretrained, folder: Path, texts: list[str]) -> None:
    """On pictures that every crop cuts alike, and texts that need no cleaning."""
    pictures = [picture.resize((60, 60)) for picture in photographs(4)]
    theirs = library_results(folder, pictures, texts)
    torch.testing.assert_close(pretrained.encode_image(pictures), theirs.image_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(pretrained.encode_text(texts), theirs.text_ND, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("whole_models_alone")
@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip 2"])
def test_a_folder_from_there_goes_back_bit_for_bit_with_its_tokenizer_and_pictures(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    clip_folder(source) if kind == "clip" else siglip_folder(source, second=kind == "siglip 2")
    to = tmp_path / "export"
    parity = export_model(source, to, ["hf"])
    row = parity["consumers"]["transformers CLIPModel" if kind == "clip" else "transformers SiglipModel"]
    assert (row["same_crop"], row["same_token_ids"]) == (1, 1)
    assert all(value < 1e-5 for value in row["largest_difference"].values())
    before, after = load_file(source / "model.safetensors"), load_file(to / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    pictures, texts = photographs(4), varied_strings(60)
    one, other = library_results(source, pictures, texts), library_results(to, pictures, texts)
    assert one.ids == other.ids
    assert torch.equal(one.pixels_B3SS, other.pixels_B3SS)
    assert torch.equal(one.logits_BN, other.logits_BN)
    again, first = load(to), load(source)
    assert torch.equal(again.encode_text(texts), first.encode_text(texts))
    assert again.config == replace(first.config, text=replace(first.config.text, tokenizer=str(to)))


def test_a_clip_trained_with_a_bias_keeps_it_in_its_config(tmp_path: Path) -> None:
    pretrained = tiny_pretrained(replace(tiny_model_config(), init_logit_bias=-7.5))
    source = written(pretrained, tmp_path / "source")
    bias = pretrained.model.logit_bias
    assert bias is not None
    assert json.loads((source / "config.json").read_text())["logit_bias"] == bias.item()
    stored = load(source).model.logit_bias
    assert stored is not None
    assert torch.equal(stored, bias)


@pytest.mark.full
def test_a_siglip_with_clips_tokenizer_pads_with_a_token_of_its_own(tmp_path: Path) -> None:
    """Compared by all who load one: its pipeline pads to 64, whatever the model has."""
    text = SIGLIP_TEXT | {"pad": 64, "context_length": 64}
    pretrained = tiny_pretrained(siglip_config(text=tiny_model_config(text=text).text))
    source = written(pretrained, tmp_path / "source")
    assert_library_agrees(pretrained, source, ["a photo of a cat!", "wow ! ! yes!", "!", "x", "a long text " * 9])
    parity = export_model(source, tmp_path / "export", ["hf"])
    rows = parity["consumers"]
    assert list(rows) == [
        "transformers SiglipModel",
        "transformers SiglipModel, default image backend",
        "transformers SiglipVisionModel",
        "transformers SiglipTextModel",
        "transformers SiglipVisionModel, last but one hidden state",
        'transformers pipeline("zero-shot-image-classification")',
        "sentence-transformers",
    ]
    for name, row in rows.items():
        assert row["checked"]
        assert row["same_crop"] == 1.0 if "Text" not in name else row["same_token_ids"] > 0.5
        assert row["limit"] is None or max(row["largest_difference"].values()) < 1e-5
    assert rows["transformers SiglipModel"]["same_token_ids"] > 0.5


@pytest.mark.parametrize("bias", [-7.5, None])
def test_what_every_siglip_has_is_added_and_taken_back(tmp_path: Path, bias: float | None) -> None:
    pretrained = tiny_pretrained(siglip_config(init_logit_bias=bias))
    source = written(pretrained, tmp_path / "source")
    stored, ours = load_file(source / "model.safetensors"), pretrained.model.state_dict()
    assert float(stored["logit_bias"]) == float(ours.get("logit_bias", torch.zeros(1)))
    table = stored["text_model.embeddings.token_embedding.weight"]
    assert torch.equal(table[-1], table[0])
    again = load(source).model.state_dict()
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_an_export_needs_nothing_of_the_folder_that_its_training_began_from(tmp_path: Path) -> None:
    start = clip_folder(tmp_path / "start")
    texts = varied_strings(40)
    tuned = load(start)
    expected = tuned.encode_text(texts)
    export = written(tuned, tmp_path / "export")
    shutil.rmtree(start)
    moved = export.rename(tmp_path / "moved")
    again = load(moved)
    assert torch.equal(again.encode_text(texts), expected)
    assert again.tokenizer.vocab_size == tuned.tokenizer.vocab_size


def test_other_ways_to_prepare_pictures_are_written(tmp_path: Path) -> None:
    for resize in ("squash", "shortest"):
        pictures = {"resize": resize, "interpolation": "bilinear", "crop": "floor"}
        pretrained = tiny_pretrained(tiny_model_config(image=pictures))
        folder = written(pretrained, tmp_path / resize)
        photos = photographs(6)
        squares = torch.stack([pretrained.preprocess(photo) for photo in photos])
        pixels = pretrained.model.image_tower.normalize(squares).permute(0, 3, 1, 2)
        theirs = library_results(folder, photos, ["a"]).pixels_B3SS
        torch.testing.assert_close(pixels, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("only", ["image", "text"])
def test_one_tower_alone_loads_as_its_own_class(tmp_path: Path, kind: str, only: Any) -> None:
    import transformers

    pretrained = tiny_pretrained(tiny_model_config() if kind == "clip" else siglip_config())
    huggingface.write(pretrained, tmp_path, ExportOptions(only=only))
    tower = "Vision" if only == "image" else "Text"
    name = f"CLIP{tower}ModelWithProjection" if kind == "clip" else f"Siglip{tower}Model"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]
    _, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    names = {path.name for path in tmp_path.iterdir()}
    assert ("preprocessor_config.json" in names, "tokenizer.json" in names) == (only == "image", only == "text")


PROBLEMS: dict[str, ModelConfig] = {
    "CLIPModel has no place for .*resnet18: it is no plain ViT": tiny_model_config(
        image={"name": "resnet18", "options": {}, "image_size": 32}
    ),
    "it must have 1 tokens besides the patches": tiny_model_config(image={"options": OPTIONS | {"reg_tokens": 2}}),
    "it must have a LayerNorm before the blocks": tiny_model_config(
        image={"name": "vit_tiny_patch16_224", "options": {}, "image_size": 32}
    ),
    "it must have pooling at the class token": tiny_model_config(
        image={"options": OPTIONS | {"global_pool": "avg", "fc_norm": False}}
    ),
    "it must have biases in attention": tiny_model_config(image={"options": OPTIONS | {"qkv_bias": False}}),
    "it must have an activation among": tiny_model_config(image={"options": OPTIONS | {"act_layer": "silu"}}),
    "no place for the parameter image_tower.trunk.blocks.0.ls1": tiny_model_config(
        image={"options": OPTIONS | {"init_values": 0.1}}
    ),
    "it must have a linear projection": tiny_model_config(image={"projection": "mlp"}),
    "this model.text: it must have causal=true": tiny_model_config(text={"causal": False}),
    "this model.text: it must have bias=false": tiny_model_config(text={"bias": True}),
    "SiglipModel has no place for .*: it must have no projection": tiny_model_config(
        image=SIGLIP_IMAGE | {"projection": "linear"}, text=SIGLIP_TEXT
    ),
    "this model.text: it must have causal=false": tiny_model_config(image=SIGLIP_IMAGE),
}


@pytest.mark.parametrize("message", PROBLEMS)
def test_a_model_without_a_class_says_what_differs(message: str) -> None:
    problem = huggingface.problem(tiny_pretrained(PROBLEMS[message]))
    assert problem is not None
    assert re.search(message, problem), problem
