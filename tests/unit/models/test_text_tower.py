"""Text towers: exactness of the packed interface, agreement with transformers, initialisation, bad input."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5Model

from clipx.config.model import HuggingFaceTextConfig, TransformerTextConfig
from clipx.errors import InputError
from clipx.models.text_tower import HuggingFaceTextTower, TextTower, build_text_tower, unpack_tokens

VOCABULARY = 30
END = VOCABULARY - 1
CONFIG = TransformerTextConfig(width=32, layers=2, heads=4, context_length=12)
LENGTHS_B = torch.tensor([3, 12, 1, 7])


def tower(config: TransformerTextConfig | HuggingFaceTextConfig = CONFIG) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_text_tower(config, vocab_size=VOCABULARY, embed_dim=8)


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randint(0, END, (int(length),), generator=generator) for length in LENGTHS_B]
    return [torch.cat((text[:-1], torch.tensor([END]))) for text in drawn]


def test_unpack_lays_texts_out_as_rows() -> None:
    rows = unpack_tokens(torch.tensor([5, 6, 7, 8, 9, 4]), torch.tensor([2, 1, 3]), max_length=4, fill=-1)
    assert rows.tolist() == [[5, 6, -1, -1], [7, -1, -1, -1], [8, 9, 4, -1]]


def test_a_text_alone_is_the_same_as_in_company_and_under_any_bound() -> None:
    model = tower()
    together = model(torch.cat(texts()), LENGTHS_B, max_length=12)
    for i, text in enumerate(texts()):
        alone = model(text, LENGTHS_B[i : i + 1], max_length=len(text))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)
    short = model(torch.cat(texts()[2:]), LENGTHS_B[2:], max_length=7)
    torch.testing.assert_close(together[2:], short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_agrees_with_transformers_clip(activation: str) -> None:
    config = TransformerTextConfig(width=32, layers=2, heads=4, context_length=12, activation=activation)
    model = tower(config).double()
    for parameter in model.parameters():  # biases and gains too, which start at 0 and 1
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=128,
            projection_dim=8,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=12,
            hidden_act=activation,
            eos_token_id=END,
        )
    ).double()
    theirs.load_state_dict(transformers_names(model.state_dict()), strict=True)
    rows = unpack_tokens(torch.cat(texts()), LENGTHS_B, max_length=12)
    ours = model(torch.cat(texts()), LENGTHS_B, max_length=12)
    torch.testing.assert_close(ours, theirs.eval()(input_ids=rows).text_embeds, rtol=1e-10, atol=1e-10)


def transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our text tower's weights under the names of transformers' CLIPTextModelWithProjection."""
    renamed = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["position_embedding.weight"],
        "text_model.final_layer_norm.weight": state["norm.weight"],
        "text_model.final_layer_norm.bias": state["norm.bias"],
        "text_projection.weight": state["projection.weight"],
    }
    parts = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj", "mlp": "mlp"}
    for name, value in state.items():
        if not name.startswith("blocks."):
            continue
        _, number, rest = name.split(".", 2)
        layer = f"text_model.encoder.layers.{number}"
        if rest.startswith("attn.qkv"):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{letter}_proj.{rest.rsplit('.', 1)[1]}"] = part
        else:
            ours = next(part for part in parts if rest.startswith(part))
            renamed[f"{layer}.{parts[ours]}{rest.removeprefix(ours)}"] = value
    return renamed


def test_initialisation_has_clips_deviations() -> None:
    config = TransformerTextConfig(width=256, layers=4, heads=4, context_length=64)
    torch.manual_seed(0)
    model = build_text_tower(config, vocab_size=500, embed_dim=128)
    expected = {
        "token_embedding.weight": 0.02,
        "position_embedding.weight": 0.01,
        "blocks.3.attn.qkv.weight": 256**-0.5,
        "blocks.3.attn.proj.weight": (256 * 8) ** -0.5,
        "blocks.3.mlp.fc1.weight": 512**-0.5,
        "blocks.3.mlp.fc2.weight": (256 * 8) ** -0.5,
        "projection.weight": 256**-0.5,
    }
    state = model.state_dict()
    for name, std in expected.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.03), name
    assert all(value.abs().max() == 0 for name, value in state.items() if name.endswith("bias"))


def test_a_bound_above_the_context_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="max_length=13 above 12"):
        tower()(torch.cat(texts()), LENGTHS_B, max_length=13)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny BERT that has dropout and a pooler."""
    folder = tmp_path_factory.mktemp("bert")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=12, **shape)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("pool", ["cls", "mean", "last"])
def test_huggingface_tower_pools_real_tokens_only(bert: str, pool: str) -> None:
    model = tower(HuggingFaceTextConfig(name=bert, context_length=12, pool=pool)).train()
    assert isinstance(model, HuggingFaceTextTower)
    together = model(torch.cat(texts()), LENGTHS_B, max_length=12)
    original = BertModel.from_pretrained(bert).eval()
    for i, text in enumerate(texts()):
        hidden = original(input_ids=text[None]).last_hidden_state[0]
        pooled = {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[pool]
        # In training too: the towers have no dropout.
        torch.testing.assert_close(together[i], model.projection(pooled), rtol=1e-4, atol=1e-5)


def test_huggingface_tower_gives_every_parameter_a_gradient(bert: str) -> None:
    model = tower(HuggingFaceTextConfig(name=bert, context_length=12)).train()
    model(torch.cat(texts()), LENGTHS_B, max_length=12).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_huggingface_tower_without_weights_draws_its_own(bert: str) -> None:
    loaded, fresh = (
        tower(HuggingFaceTextConfig(name=bert, context_length=12, pretrained=pretrained))
        for pretrained in (True, False)
    )
    name = "encoder.embeddings.word_embeddings.weight"
    assert torch.equal(loaded.state_dict()[name], BertModel.from_pretrained(bert).embeddings.word_embeddings.weight)
    assert not torch.equal(loaded.state_dict()[name], fresh.state_dict()[name])


def test_huggingface_tower_takes_the_encoder_of_an_encoder_decoder(tmp_path: Path) -> None:
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
        build_text_tower(config, vocab_size=vocabulary, embed_dim=8)
    assert "\n" not in str(caught.value)


def test_a_model_of_pictures_and_text_is_no_text_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="a clip model is no text encoder"):
        tower(HuggingFaceTextConfig(name=str(tmp_path)))


def test_text_tower_is_what_the_config_describes() -> None:
    model = tower(TransformerTextConfig(width=32, layers=3, heads=4, context_length=12, mlp_ratio=2.0))
    assert isinstance(model, TextTower)
    assert len(model.blocks) == 3
    assert model.blocks[0].mlp.fc1.out_features == 64
    assert model.projection.bias is None
