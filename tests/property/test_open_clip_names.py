"""open_clip's names and back again change no weight, whatever the towers and their sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipx.config.model import HuggingFaceTextConfig, ModelConfig, TextConfig, TimmImageConfig, TransformerTextConfig
from clipx.models.clip import build_model
from clipx.models.key_maps.open_clip import Towers, key_map

small = st.integers(1, 3)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@st.composite
def image_towers(draw: st.DrawFn) -> tuple[TimmImageConfig, dict[str, bool]]:
    timm_image = draw(st.booleans())
    width = 4 * draw(small)
    options: dict[str, Any] = {"embed_dim": width, "depth": draw(small), "num_heads": draw(st.sampled_from([1, 2, 4]))}
    options |= {"patch_size": draw(st.sampled_from([4, 8])), "mlp_ratio": draw(st.sampled_from([1.0, 2.5]))}
    if draw(st.booleans()):
        options["init_values"] = 0.1
    norm_after_pool = draw(st.booleans())
    if norm_after_pool or draw(st.booleans()):
        options |= {"global_pool": "avg", "fc_norm": norm_after_pool}
    projection = draw(st.sampled_from(["linear", "mlp"])) if timm_image else "linear"
    config = TimmImageConfig(
        name="vit_base_patch16_clip_224", image_size=8 * draw(small), options=options, projection=projection
    )
    return config, {"timm_image": timm_image, "norm_after_pool": norm_after_pool}


@st.composite
def text_towers(draw: st.DrawFn, *, folder: Path, embed_dim: int) -> tuple[TextConfig, dict[str, bool]]:
    heads, layers, context_length = draw(small), draw(small), draw(st.integers(3, 9))
    if draw(st.booleans()):
        projection = draw(st.sampled_from(["linear", "none"]))
        width = embed_dim if projection == "none" else 2 * heads
        bias = projection == "linear" and draw(st.booleans())
        sizes = {"width": width, "heads": 1 if projection == "none" else heads, "layers": layers}
        config = TransformerTextConfig(context_length=context_length, projection=projection, bias=bias, **sizes)
        return config, {"text_bias": bias, "custom_text": draw(st.booleans())}
    from transformers import BertConfig

    projection = draw(st.sampled_from(["linear", "mlp", "none"]))
    width = embed_dim if projection == "none" else 2 * heads
    name = folder / f"{width}_{layers}"
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 1, "intermediate_size": 5}
    BertConfig(**sizes, vocab_size=11, max_position_embeddings=9).save_pretrained(name)
    text = HuggingFaceTextConfig(name=str(name), context_length=context_length, pretrained=False, projection=projection)
    return text, {"transformers_text": True, "custom_text": True}


@given(data=st.data())
@settings(max_examples=15)
def test_there_and_back_is_the_identity(encoders: Path, data: st.DataObject) -> None:
    embed_dim = data.draw(st.integers(2, 9))
    image, image_words = data.draw(image_towers())
    text, text_words = data.draw(text_towers(folder=encoders, embed_dim=embed_dim))
    bias = data.draw(st.sampled_from([None, -3.0]))
    config = ModelConfig(embed_dim=embed_dim, image=image, text=text, init_logit_bias=bias)
    weights = build_model(config, vocab_size=11, seed=data.draw(st.integers(0, 9))).state_dict()
    names = key_map(Towers(**image_words, **text_words))
    theirs = names.to_theirs(weights)
    assert len(theirs) == len(weights)
    back = names.to_ours(theirs)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())
