"""Pretrained encoders: packed where they let our attention in, padded elsewhere, pooled either way; bad input."""

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import BertConfig, BertModel, T5Config, T5Model

from clipx.config.model import HuggingFaceTextConfig
from clipx.errors import InputError
from clipx.models import huggingface_text
from clipx.models.huggingface_text import PACKED, HuggingFaceTextTower
from clipx.models.text_tower import build_text_tower

VOCABULARY = 30
LENGTHS_B = torch.tensor([3, 12, 1, 7])
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.5,
}
DECODER = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}


def tower(config: HuggingFaceTextConfig, *, vocab_size: int = VOCABULARY) -> HuggingFaceTextTower:
    torch.manual_seed(0)
    model = build_text_tower(config, vocab_size=vocab_size, embed_dim=8)
    assert isinstance(model, HuggingFaceTextTower)
    return model


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, VOCABULARY, (int(length),), generator=generator) for length in LENGTHS_B]


def saved(folder: Path, kind: str, **shape: object) -> HuggingFaceTextConfig:
    """The configuration alone: weights are drawn."""
    getattr(transformers, kind)(**shape).save_pretrained(folder)
    return HuggingFaceTextConfig(name=str(folder), context_length=12, pretrained=False)


@pytest.mark.parametrize(
    ("kind", "shape", "first_position"),
    [
        ("BertConfig", {**SMALL, "max_position_embeddings": 16}, 0),
        ("XLMRobertaConfig", {**SMALL, "max_position_embeddings": 18, "pad_token_id": 1}, 2),
        ("DistilBertConfig", {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}, 0),
        pytest.param(
            "ModernBertConfig",
            {**SMALL, "pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2},
            0,
            marks=pytest.mark.skipif(
                Version(transformers.__version__) < Version("5.10"), reason="runs padded before 5.10"
            ),
        ),
        ("GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}, 0),
        ("Qwen3Config", DECODER, 0),
        ("Gemma3TextConfig", DECODER, 0),
    ],
)
def test_packed_encoder_gives_what_each_text_gives_alone(
    tmp_path: Path, kind: str, shape: dict[str, object], first_position: int
) -> None:
    model = tower(saved(tmp_path, kind, **shape)).double().train()
    assert model.first_position == first_position
    assert model.encoder.config._attn_implementation == PACKED
    found = model(torch.cat(texts()), LENGTHS_B, max_length=12)
    wanted = list(torch.autograd.grad(found.square().sum(), list(model.parameters())))  # fails if one gets none
    model.encoder.set_attn_implementation("eager")
    alone = torch.stack(
        [model.projection(model.encoder(input_ids=text[None]).last_hidden_state[0].mean(0)) for text in texts()]
    )
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)
    gradients = list(torch.autograd.grad(alone.square().sum(), list(model.parameters())))
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        ("MPNetConfig", {**SMALL, "max_position_embeddings": 18, "pad_token_id": 1}, "its hidden states differ"),
        ("Gemma2Config", DECODER, "its attention has softcap"),
        ("MistralConfig", {**DECODER, "sliding_window": 4}, "its hidden states differ"),
        ("CLIPTextConfig", {**SMALL, "max_position_embeddings": 16}, "Sequence length must be less"),
    ],
)
def test_other_encoders_run_padded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, shape: dict[str, object], reason: str
) -> None:
    model = tower(saved(tmp_path, kind, **shape)).double()
    assert model.first_position is None
    assert model.encoder.config._attn_implementation != PACKED
    (message,) = [record.message for record in caplog.records if record.name == huggingface_text.__name__]
    assert f"not packed, because: {reason}" in message
    found = model(torch.cat(texts()), LENGTHS_B, max_length=12)
    alone = [model(text, LENGTHS_B[i : i + 1], max_length=len(text)) for i, text in enumerate(texts())]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_an_attention_that_leaks_between_texts_is_not_taken(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(
        module: object, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, None]:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2), None

    monkeypatch.setattr(huggingface_text, "_attention", leaking)
    assert tower(HuggingFaceTextConfig(name=bert, context_length=12)).first_position is None


def test_trying_an_encoder_leaves_its_weights_alone(bert: str) -> None:
    model = tower(HuggingFaceTextConfig(name=bert, context_length=12))
    original = BertModel.from_pretrained(bert).state_dict()
    assert not model.encoder.training  # as transformers gives it
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, original[name]), name
        assert value.dtype == original[name].dtype


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny BERT that has dropout and a pooler."""
    folder = tmp_path_factory.mktemp("bert")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=12, **shape)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("pool", ["cls", "mean", "last"])
@pytest.mark.parametrize("packs", [True, False])
def test_pools_real_tokens_only(bert: str, pool: str, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packs:
        monkeypatch.setattr(huggingface_text, "_make_packed", lambda *_, **__: None)
    model = tower(HuggingFaceTextConfig(name=bert, context_length=12, pool=pool)).train()
    assert (model.first_position is not None) == packs
    together = model(torch.cat(texts()), LENGTHS_B, max_length=12)
    original = BertModel.from_pretrained(bert).eval()
    for i, text in enumerate(texts()):
        hidden = original(input_ids=text[None]).last_hidden_state[0]
        pooled = {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[pool]
        # In training too: the towers have no dropout.
        torch.testing.assert_close(together[i], model.projection(pooled), rtol=1e-4, atol=1e-5)


def test_gives_every_parameter_a_gradient(bert: str) -> None:
    model = tower(HuggingFaceTextConfig(name=bert, context_length=12)).train()
    model(torch.cat(texts()), LENGTHS_B, max_length=12).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_without_weights_draws_its_own(bert: str) -> None:
    loaded, fresh = (
        tower(HuggingFaceTextConfig(name=bert, context_length=12, pretrained=pretrained))
        for pretrained in (True, False)
    )
    name = "encoder.embeddings.word_embeddings.weight"
    assert torch.equal(loaded.state_dict()[name], BertModel.from_pretrained(bert).embeddings.word_embeddings.weight)
    assert not torch.equal(loaded.state_dict()[name], fresh.state_dict()[name])


def test_takes_the_encoder_of_an_encoder_decoder(tmp_path: Path) -> None:
    T5Model(T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path
    )
    model = tower(HuggingFaceTextConfig(name=str(tmp_path), context_length=12)).train()
    model(torch.cat(texts()), LENGTHS_B, max_length=12).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("changes", "vocabulary", "message"),
    [
        ({"name": "no/such/folder"}, VOCABULARY, "model.text.name=no/such/folder.*not there"),
        ({}, VOCABULARY + 1, "embeds 30 tokens, the tokenizer has 31"),
        ({"context_length": 13}, VOCABULARY, "context_length=13 is above the 12 positions"),
    ],
)
def test_bad_huggingface_models_are_input_errors(
    bert: str, changes: dict[str, object], vocabulary: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = HuggingFaceTextConfig(**{"name": bert, "context_length": 12} | changes)
    with pytest.raises(InputError, match=message) as caught:
        tower(config, vocab_size=vocabulary)
    assert "\n" not in str(caught.value)


def test_a_model_of_pictures_and_text_is_no_text_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="a clip model is no text encoder"):
        tower(HuggingFaceTextConfig(name=str(tmp_path)))
