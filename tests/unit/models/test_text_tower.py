"""Text towers: exactness of the packed interface, agreement with transformers, initialisation, bad input."""

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch
from reference.text_tower import padded
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, SiglipTextConfig, SiglipTextModel

from clipx.config.model import TransformerTextConfig
from clipx.errors import InputError
from clipx.models.text_tower import TextTower, build_text_tower

VOCABULARY = 30
END = VOCABULARY - 1
CONFIG = TransformerTextConfig(width=32, layers=2, heads=4, context_length=12)
LENGTHS_B = torch.tensor([3, 12, 1, 7])


def tower(config: TransformerTextConfig = CONFIG) -> TextTower:
    torch.manual_seed(0)
    model = build_text_tower(config, vocab_size=VOCABULARY, embed_dim=8)
    assert isinstance(model, TextTower)
    return model


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randint(0, END, (int(length),), generator=generator) for length in LENGTHS_B]
    return [torch.cat((text[:-1], torch.tensor([END]))) for text in drawn]


def test_a_text_alone_is_the_same_as_in_company_and_under_any_bound() -> None:
    model = tower()
    together = model(torch.cat(texts()), LENGTHS_B, max_length=12)
    for i, text in enumerate(texts()):
        alone = model(text, LENGTHS_B[i : i + 1], max_length=len(text))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)
    short = model(torch.cat(texts()[2:]), LENGTHS_B[2:], max_length=7)
    torch.testing.assert_close(together[2:], short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    "lengths", [[3, 24, 2, 17, 7], [24, 1, 24, 9, 24, 24, 24], [1, 1, 1], [5, 5, 5, 5], [24, 24], [9], [1]]
)
@pytest.mark.parametrize("packing", ["groups", "padded groups", "bucketed"])
def test_is_the_padded_tower_in_value_and_every_gradient(
    dtype: torch.dtype, tolerance: float, lengths: list[int], packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: packing == "padded groups")
    model = tower(dataclasses.replace(CONFIG, context_length=24)).to(dtype)
    for parameter in model.parameters():  # biases and gains too, which start at 0 and 1
        torch.nn.init.normal_(parameter, std=0.2)
    tokens_T = torch.randint(VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(3))
    lengths_B = torch.tensor(lengths)
    weight_BD = torch.randn(len(lengths), 8, dtype=dtype, generator=torch.Generator().manual_seed(4))
    expected = padded(model, tokens_T, lengths_B, length=24)
    wanted = torch.autograd.grad((expected * weight_BD).sum(), list(model.parameters()))
    model.bucketed = packing == "bucketed"
    found = model(tokens_T, lengths_B, max_length=max(lengths))
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(found, expected, **close)
    gradients = torch.autograd.grad((found * weight_BD).sum(), list(model.parameters()))
    for (name, _), ours, theirs in zip(model.named_parameters(), gradients, wanted, strict=True):
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours / scale, theirs / scale, **close, msg=lambda text, name=name: f"{name}: {text}")


def test_products_in_half_precision_see_few_shapes_on_a_cpu() -> None:
    model, seen = tower(), set[int]()
    model.blocks[0].mlp.fc1.register_forward_pre_hook(lambda _, inputs: seen.add(len(inputs[0])))
    for num_tokens in range(257, 512, 3):
        lengths_B = torch.tensor([12] * (num_tokens // 12) + [num_tokens % 12 or 1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result_BD = model(torch.ones(int(lengths_B.sum()), dtype=torch.int64), lengths_B, max_length=12)
        assert len(result_BD) == len(lengths_B)
    assert len(seen) <= 17


def test_only_real_tokens_go_through_the_linear_layers_and_only_end_tokens_through_the_last() -> None:
    model = tower()
    rows: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, inputs, output, name=name: rows.update({name: len(output)}))
    model(torch.cat(texts()), LENGTHS_B, max_length=12)
    assert rows == {
        **{f"blocks.0.{name}": 23 for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")},
        "blocks.1.attn.qkv": 23,  # keys and values of all
        **{f"blocks.1.{name}": 4 for name in ("attn.proj", "mlp.fc1", "mlp.fc2")},
        "projection": 4,
    }


@pytest.mark.parametrize(("dynamic", "most"), [(True, 2), (None, 4)])
def test_compiled_blocks_are_compiled_a_bounded_number_of_times(dynamic: bool | None, most: int) -> None:
    """One graph for all blocks but the last and one for that; both again if only a second shape shows what varies."""
    torch.compiler.reset()
    model, plain = tower(), tower()
    model.bucketed = True
    counter = CompileCounter()
    for block in model.blocks:
        block.compile(backend=counter, dynamic=dynamic, fullgraph=True)
    generator = torch.Generator().manual_seed(5)
    for _ in range(12):
        lengths_B = torch.randint(3, 13, (20,), generator=generator)
        tokens_T = torch.randint(VOCABULARY, (int(lengths_B.sum()),), generator=generator)
        found = model(tokens_T, lengths_B, max_length=int(lengths_B.max()))
        torch.testing.assert_close(found, plain(tokens_T, lengths_B, max_length=12), rtol=1e-5, atol=1e-5)
    assert 2 <= counter.frame_count <= most


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
    rows = torch.stack([functional.pad(text, (0, 12 - len(text))) for text in texts()])
    ours = model(torch.cat(texts()), LENGTHS_B, max_length=12)
    torch.testing.assert_close(ours, theirs.eval()(input_ids=rows).text_embeds, rtol=1e-10, atol=1e-10)


def test_agrees_with_transformers_siglip() -> None:
    changes = {"causal": False, "pool": "last", "pad": 12, "bias": True, "activation": "gelu_tanh", "eps": 1e-6}
    model = tower(replace(CONFIG, **changes)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = SiglipTextModel(
        SiglipTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=128,
            projection_size=8,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=12,
        )
    ).double()
    renamed = {
        name.replace("text_projection", "text_model.head"): value
        for name, value in transformers_names(model.state_dict()).items()
    }
    prefix = "text_model." if any(name.startswith("text_model.") for name in theirs.state_dict()) else ""
    renamed = {name.replace("text_model.", prefix): value for name, value in renamed.items()}
    theirs.load_state_dict(renamed, strict=True)
    rows = torch.stack([functional.pad(text, (0, 12 - len(text))) for text in texts()])
    ours = model(rows.flatten(), torch.full((len(rows),), 12), max_length=12)
    torch.testing.assert_close(ours, theirs.eval()(input_ids=rows).pooler_output, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad": 8, "pool": "last"}, "pad=8 is not model.text.context_length=12"),
        ({"pad": 12}, "`pool: last` and `pad` together"),
        ({"pool": "last"}, "`pool: last` and `pad` together"),
    ],
)
def test_padding_that_contradicts_itself_is_bad_input(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)


def test_a_vocabulary_below_the_tokenizers_is_bad_input() -> None:
    assert tower(replace(CONFIG, vocab_size=40)).token_embedding.num_embeddings == 40
    with pytest.raises(InputError, match="vocab_size=20 is below the 30 ids"):
        tower(replace(CONFIG, vocab_size=20))


def transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our text tower's weights under the names of transformers' CLIPTextModelWithProjection."""
    renamed = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["position_embedding.weight"],
        "text_model.final_layer_norm.weight": state["norm.weight"],
        "text_model.final_layer_norm.bias": state["norm.bias"],
    } | {name.replace("projection", "text_projection"): state[name] for name in state if name.startswith("projection")}
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


def test_text_tower_is_what_the_config_describes() -> None:
    model = tower(TransformerTextConfig(width=32, layers=3, heads=4, context_length=12, mlp_ratio=2.0))
    assert len(model.blocks) == 3
    assert model.blocks[0].mlp.fc1.out_features == 64
    assert model.projection.bias is None
