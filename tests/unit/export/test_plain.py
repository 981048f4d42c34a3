"""The plain padded modules compute what the model computes, and programs of them take any batch and length."""

from dataclasses import replace

import pytest
import torch
import transformers
from tiny_clip import picture, tiny_model_config, tiny_pretrained

from clipx.config.model import HuggingFaceTextConfig, ModelConfig
from clipx.errors import RunError
from clipx.export.plain import plain_image, plain_problem, plain_text
from clipx.export.programs import image_program, text_program
from clipx.models.clip import build_model

LENGTHS_B = torch.tensor([2, 9, 5, 16])
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIGLIP = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}
SIGLIP_TEXT = {"causal": False, "pool": "last", "pad": 16, "bias": True, "activation": "gelu_tanh", "eps": 1e-6}


def padded(tokens_T, *, junk: int):
    """Rows with ids after the texts that are not to be looked at, and their mask."""
    ids_BL = torch.full((len(LENGTHS_B), int(LENGTHS_B.max())), junk)
    mask_BL = (torch.arange(ids_BL.shape[1]) < LENGTHS_B[:, None]).long()
    ids_BL[mask_BL.bool()] = tokens_T
    return ids_BL, mask_BL


def texts(vocab_size: int):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, vocab_size, (int(LENGTHS_B.sum()),), generator=generator)


@pytest.mark.parametrize(
    ("image", "projection"),
    [
        ({}, "linear"),
        ({"name": "resnet10t", "options": {}, "image_size": 32}, "mlp"),
        ({"name": "vit_base_patch16_siglip_224", "options": SIGLIP}, "none"),
        ({"name": "vit_base_patch32_clip_224", "image_size": 33, "eps": 1e-3}, "linear"),
    ],
    ids=["clip", "resnet", "attention_pooling", "odd_size"],
)
@torch.no_grad()
def test_plain_images(image, projection):
    config = replace(tiny_model_config(image=image), embed_dim=32, projection="linear")
    config = replace(config, image=replace(config.image, projection=projection))
    pretrained = tiny_pretrained(config)
    squares_BHWC = torch.stack([pretrained.preprocess(picture(seed)) for seed in range(3)])
    pixels_B3SS = pretrained.model.image_tower.normalize(squares_BHWC).permute(0, 3, 1, 2)
    plain = plain_image(pretrained.model.image_tower, unit_length=True)
    torch.testing.assert_close(plain(pixels_B3SS), pretrained.encode_image(squares_BHWC), rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", [{}, {"causal": False}, {"activation": "quick_gelu", "projection": "mlp"}])
@torch.no_grad()
def test_plain_texts(text):
    pretrained = tiny_pretrained(tiny_model_config(text=text))
    tokens_T = texts(49_408)
    wanted_BD = pretrained.model.encode_text(tokens_T, LENGTHS_B, max_length=16)
    for junk in (0, 49_407):
        found_BD = plain_text(pretrained.model.text_tower, unit_length=True)(*padded(tokens_T, junk=junk))
        torch.testing.assert_close(found_BD, wanted_BD, rtol=0, atol=1e-6)


@torch.no_grad()
def test_padding_that_counts_as_text_has_no_mask():
    pretrained = tiny_pretrained(tiny_model_config(text=SIGLIP_TEXT))
    written = ["a cat", "a long text about two dogs, an owl and all that they have done"]
    tokens_T, _ = pretrained.tokenize(written)
    found_BD = plain_text(pretrained.model.text_tower, unit_length=True)(tokens_T.unflatten(0, (2, 16)))
    torch.testing.assert_close(found_BD, pretrained.encode_text(written), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape", "pool"),
    [
        ("BertConfig", {**SMALL, "max_position_embeddings": 16}, "cls"),
        ("XLMRobertaConfig", {**SMALL, "max_position_embeddings": 18, "pad_token_id": 1}, "mean"),
        ("GPT2Config", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}, "last"),
        ("MPNetConfig", {**SMALL, "max_position_embeddings": 18, "pad_token_id": 1}, "mean"),  # clipx runs it padded
    ],
)
@torch.no_grad()
def test_plain_encoders(tmp_path, kind, shape, pool):
    getattr(transformers, kind)(**shape).save_pretrained(tmp_path)
    text = HuggingFaceTextConfig(name=str(tmp_path), context_length=16, pool=pool, pretrained=False, projection="mlp")
    config = ModelConfig(embed_dim=24, image=tiny_model_config().image, text=text)
    model = build_model(config, vocab_size=40, seed=0).eval()
    tokens_T = texts(40)
    wanted_BD = model.encode_text(tokens_T, LENGTHS_B, max_length=16)
    found_BD = plain_text(model.text_tower, unit_length=True)(*padded(tokens_T, junk=39))
    torch.testing.assert_close(found_BD, wanted_BD, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.encode_text(tokens_T, LENGTHS_B, max_length=16), wanted_BD)  # it is as it was


def test_a_text_tower_of_another_kind_has_no_plain_form():
    model = tiny_pretrained().model
    assert plain_problem(model) is None
    model.text_tower = torch.nn.Identity()
    assert plain_problem(model) == "its text tower is of type Identity, of which clipx knows no padded form"


@torch.no_grad()
def test_programs_take_any_batch_and_length():
    pretrained = tiny_pretrained()
    program = text_program(pretrained, unit_length=True).module()
    plain = plain_text(pretrained.model.text_tower, unit_length=True)
    for batch, length in ((1, 2), (7, 16), (64, 3)):
        ids_BL = torch.arange(batch * length).reshape(batch, length)
        inputs = (ids_BL, torch.ones_like(ids_BL))
        torch.testing.assert_close(program(*inputs), plain(*inputs), rtol=0, atol=1e-6)


def test_a_trunk_that_cannot_be_converted_is_one_line(monkeypatch):
    pretrained = tiny_pretrained()
    trunk = pretrained.model.image_tower.trunk
    monkeypatch.setattr(type(trunk), "forward_head", lambda _self, x: x[:, 0] if x.sum() > 0 else x[:, 0] * 2)
    with pytest.raises(RunError, match=r"^torch\.export does not take the image tower \(.*\); export") as caught:
        image_program(pretrained)
    assert "\n" not in str(caught.value)
