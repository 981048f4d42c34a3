"""Graphs of ONNX against the model that they were made from; conversions take seconds, so few models are converted."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_clip import picture, tiny_model_config, tiny_pretrained
from tokenizers import Tokenizer, models, pre_tokenizers

from clipx.config.model import HuggingFaceTextConfig, ModelConfig
from clipx.errors import RunError
from clipx.export import onnx, onnx_graphs, pt2
from clipx.export.check import check
from clipx.export.options import ExportOptions
from clipx.export.parity import onnxruntime as served
from clipx.export.parity.serving import pixel_values, token_rows
from clipx.models.clip import build_model
from clipx.pretrained import Pretrained

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIGLIP = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}
SIGLIP_TEXT = {"causal": False, "pool": "last", "pad": 16, "bias": True, "activation": "gelu_tanh", "layers": 1}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "x", "owl"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A model of CLIP's shape and its graphs, those of 8 bits too."""
    pretrained = tiny_pretrained(tiny_model_config(text={"context_length": 77, "layers": 1}))
    folder = tmp_path_factory.mktemp("clip")
    onnx.write(pretrained, folder, ExportOptions(int8=True))
    return pretrained, folder


def session(folder: Path, name: str):
    return onnxruntime.InferenceSession(folder / "onnx" / f"{name}.onnx", providers=["CPUExecutionProvider"])


def names(values) -> dict[str, list[object]]:
    return {value.name: value.shape for value in values}


def random_inputs(pretrained, *, images: int, texts: int, length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(images + texts + length)
    size = pretrained.config.image.image_size
    mask_NL = (np.arange(length) < generator.integers(1, length + 1, size=(texts, 1))).astype(np.int64)
    mask_NL[0] = 1
    return {
        "pixel_values": generator.normal(size=(images, 3, size, size)).astype(np.float32),
        "input_ids": generator.integers(0, 49_408, size=(texts, length)),
        "attention_mask": mask_NL,
    }


@torch.no_grad()
def ours(pretrained, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The four outputs of the whole model, by the packed text tower."""
    ids_NL, mask_NL = torch.from_numpy(inputs["input_ids"]), torch.from_numpy(inputs["attention_mask"])
    model = pretrained.model
    text_ND = model.encode_text(ids_NL[mask_NL.bool()], mask_NL.sum(1), max_length=ids_NL.shape[1])
    pixels_B3SS = torch.from_numpy(inputs["pixel_values"])
    image_BD = torch.nn.functional.normalize(model.image_tower.projection(model.image_tower.trunk(pixels_B3SS)), dim=1)
    logits_BN = pretrained.logit_scale * image_BD @ text_ND.T
    if model.logit_bias is not None:
        logits_BN = logits_BN + model.logit_bias
    found = (logits_BN, logits_BN.T, text_ND, image_BD)
    outputs = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
    return dict(zip(outputs, (values.numpy() for values in found), strict=True))


def test_files_inputs_and_outputs_are_those_that_transformers_js_looks_for(clip):
    _, folder = clip
    stored = [(folder / "onnx" / name).read_bytes() for name in ("model.onnx", "model_quantized.onnx")]
    assert not any(str(Path(transformers.__file__).parents[1]).encode() in content for content in stored)
    graphs = {f"{name}{kind}.onnx" for name in ("model", "vision_model", "text_model") for kind in ("", "_quantized")}
    assert {path.name for path in (folder / "onnx").iterdir()} == graphs
    whole, vision, text = (session(folder, name) for name in ("model", "vision_model", "text_model"))
    images, texts, length = "image_batch_size", "text_batch_size", "sequence_length"
    pixels = {"pixel_values": [images, 3, 24, 24]}
    written = {"input_ids": [texts, length], "attention_mask": [texts, length]}
    assert names(whole.get_inputs()) == pixels | written
    assert names(whole.get_outputs()) == {
        "logits_per_image": [images, texts],
        "logits_per_text": [texts, images],
        "text_embeds": [texts, 24],
        "image_embeds": [images, 24],
    }
    assert (names(vision.get_inputs()), names(vision.get_outputs())) == (pixels, {"image_embeds": [images, 24]})
    assert (names(text.get_inputs()), names(text.get_outputs())) == (written, {"text_embeds": [texts, 24]})
    beside = {path.name for path in folder.iterdir() if path.is_file()}
    assert {"config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"} <= beside
    assert not [name for name in beside if name.endswith(".safetensors")]


@pytest.mark.parametrize(("images", "texts", "length"), [(1, 1, 2), (7, 64, 77), (64, 7, 9)])
def test_the_whole_model_computes_what_was_trained(clip, images, texts, length):
    pretrained, folder = clip
    inputs = random_inputs(pretrained, images=images, texts=texts, length=length)
    wanted = ours(pretrained, inputs)
    for name, found in zip(wanted, session(folder, "model").run(list(wanted), inputs), strict=True):
        np.testing.assert_allclose(found, wanted[name], rtol=0, atol=2e-5, err_msg=name)
    session_of_8_bits = session(folder, "model_quantized")
    similar = session_of_8_bits.run(["image_embeds"], inputs)[0] * wanted["image_embeds"]
    assert 0.95 < similar.sum(1).min() < 0.999999  # it is quantized, and not much besides


def test_matrices_and_tables_have_8_bits(clip):
    """The last block's weight is cut before it is used, and must be quantized nevertheless."""
    import onnx as library

    _, folder = clip
    for name in ("vision_model", "text_model"):
        graph = library.load(folder / "onnx" / f"{name}_quantized.onnx").graph
        large = [weight.name for weight in graph.initializer if weight.data_type == 1 and len(weight.dims) == 2]
        assert [weight for weight in large if "position" not in weight] == []


@torch.no_grad()
def test_half_precision_of_one_tower(tmp_path):
    pretrained = tiny_pretrained()
    onnx.write(pretrained, tmp_path, ExportOptions(only="image", dtype="fp16"))
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["vision_model_fp16.onnx"]
    assert (tmp_path / "onnx" / "vision_model_fp16.onnx").stat().st_size < 90_000  # 36,000 weights
    (consumer,) = [each for each in onnx.CONSUMERS if each.applies(tmp_path)]
    assert (consumer.name, consumer.limit) == ("onnxruntime fp16", None)
    pictures = [picture(seed) for seed in range(3)]
    outputs = consumer.outputs(tmp_path, pictures, ["a text"])
    assert (outputs.text_ND, outputs.logits_BN) == (None, None)
    difference = (outputs.image_BD - pretrained.encode_image(pictures)).abs().max().item()
    assert 1e-6 < difference < 5e-3


@pytest.mark.full
def test_a_resnet_with_a_bert_by_all_who_load_it(tmp_path):
    """Neither transformers nor open_clip has a class for it. Its texts are cut at the model's length."""
    bert = tmp_path / "bert"
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **shape).save_pretrained(bert)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    kinds = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **kinds).save_pretrained(bert)
    image = replace(tiny_model_config().image, name="resnet10t", options={}, image_size=32, projection="mlp")
    text = HuggingFaceTextConfig(name=str(bert), context_length=12, pool="cls", pretrained=False, bias=True)
    config = ModelConfig(embed_dim=24, image=image, text=text)
    pretrained = Pretrained(build_model(config, vocab_size=len(WORDS), seed=0).eval(), config)
    for module in (onnx, pt2):
        assert module.problem(pretrained) is None
        module.write(pretrained, tmp_path, ExportOptions())
    assert not (tmp_path / "config.json").exists()
    ids_NL, _ = token_rows(tmp_path, ["a photo of a cat " * 9], length=None)
    assert ids_NL.shape == (1, 12)
    rows = check(pretrained, tmp_path, ["onnx", "pt2"])["consumers"]
    assert list(rows) == ["onnxruntime", "torch.export"]
    for row in rows.values():
        assert (row["checked"], row["same_crop"], row["same_token_ids"]) == (True, 1.0, 1.0)
        assert set(row["largest_difference"]) == {"pixels", "image_embeddings", "text_embeddings", "logits"}
        assert max(row["largest_difference"].values()) < 2e-5


@pytest.mark.full
def test_siglips_shape_has_no_mask_and_pooled_outputs(tmp_path):
    image = {"name": "vit_base_patch16_siglip_224", "options": SIGLIP, "projection": "none"}
    config = replace(tiny_model_config(image=image, text=SIGLIP_TEXT), embed_dim=32, init_logit_bias=-10.0)
    pretrained = tiny_pretrained(config)
    onnx.write(pretrained, tmp_path, ExportOptions())
    whole, text = session(tmp_path, "model"), session(tmp_path, "text_model")
    assert names(whole.get_inputs()).keys() == {"pixel_values", "input_ids"}
    assert names(text.get_inputs()) == {"input_ids": ["text_batch_size", 16]}
    for tower, output in ((text, "text_embeds"), (session(tmp_path, "vision_model"), "image_embeds")):
        shape = [f"{output.removesuffix('_embeds')}_batch_size", 32]
        assert names(tower.get_outputs()) == {output: shape, "pooler_output": shape}
    ids_NL, _ = token_rows(tmp_path, ["a cat"], length=16)
    assert ids_NL[0, -1] == 49_408  # the folder's own padding, which transformers does not read as `!`
    row = check(pretrained, tmp_path, ["onnx"])["consumers"]["onnxruntime"]
    assert row["same_token_ids"] > 0.6
    assert max(row["largest_difference"].values()) < 2e-5


def test_weights_that_fill_no_file_lie_beside(clip, tmp_path, monkeypatch):
    import onnx as library

    _, folder = clip
    whole = library.load(folder / "onnx" / "vision_model.onnx")
    monkeypatch.setattr(onnx_graphs, "MAX_BYTES", 10_000)
    small = onnx_graphs.quantize(whole)
    (tmp_path / "onnx").mkdir()
    for name, graph in (("vision_model", whole), ("vision_model_quantized", small)):
        onnx_graphs.save_graph(graph, tmp_path / "onnx" / f"{name}.onnx", {"logit_scale": 1.0})
        assert (tmp_path / "onnx" / f"{name}.onnx_data").stat().st_size > 10_000
        inputs = {"pixel_values": np.ones((2, 3, 24, 24), np.float32)}
        wanted = session(folder, name).run(None, inputs)[0]
        np.testing.assert_array_equal(session(tmp_path, name).run(None, inputs)[0], wanted)


def test_numbers_that_are_not_finite_are_no_outputs(clip, monkeypatch):
    _, folder = clip
    monkeypatch.setattr(served, "_run", lambda *_: torch.full((1, 1), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        onnx.CONSUMERS[0].outputs(folder, [picture(0)], ["a text"])


def test_pictures_are_cut_as_the_model_cuts_them(clip):
    pretrained, folder = clip
    for size in ((24, 24), (31, 24), (24, 53), (100, 77), (11, 13), (250, 33)):
        found_3SS = pixel_values(folder, [picture(1, size)])[0]
        square_SS3 = pretrained.preprocess(picture(1, size))
        wanted_3SS = pretrained.model.image_tower.normalize(square_SS3).permute(2, 0, 1)
        np.testing.assert_allclose(found_3SS, wanted_3SS, rtol=0, atol=1e-6)


def test_without_the_packages_it_is_one_line(monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    assert onnx.problem(tiny_pretrained()) == "onnxscript not installed; pip install 'clipx-train[onnx]'"


def test_an_operator_without_a_form_is_one_line():
    class Odd(torch.nn.Module):
        def forward(self, pixel_values):
            return torch.special.bessel_j0(pixel_values).flatten(1)

    program = torch.export.export(Odd(), (torch.ones(2, 3),))
    with pytest.raises(RunError, match=r"^ONNX has no form of the tower that gives image_embeds \(.*bessel") as caught:
        onnx_graphs.convert(program, "image_embeds", {"pixel_values": ()})
    assert "\n" not in str(caught.value)


def test_settings_stand_in_the_graph(clip):
    pretrained, folder = clip
    found = session(folder, "text_model").get_modelmeta().custom_metadata_map
    assert json.loads(found["logit_scale"]) == pretrained.logit_scale
    assert "text_length" not in found
