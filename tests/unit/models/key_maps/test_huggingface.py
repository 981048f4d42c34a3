from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.errors import InputError
from clipx.models.clip import build_model
from clipx.models.key_maps.huggingface import CLIP, SIGLIP
from clipx.models.key_maps.key_map import KeyMap

GOLDEN = Path(__file__).parents[3] / "golden" / "weight_names"
SIGLIP_TEXT: dict[str, Any] = {"causal": False, "pool": "last", "bias": True}


def weights(family: str, *, heads: int, head: int, depth: int, grid: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Random weights of a model of these sizes."""
    options = {"embed_dim": heads * head, "depth": depth, "num_heads": heads, "patch_size": 4}
    image = TimmImageConfig(name=f"vit_base_patch16_{family}_224", image_size=4 * grid, options=options)
    text = TransformerTextConfig(width=heads * head, layers=depth + 1, heads=heads, context_length=5)
    config = ModelConfig(embed_dim=heads * head, image=image, text=text)
    if family == "siglip":
        config = ModelConfig(
            embed_dim=heads * head,
            image=TimmImageConfig(name=image.name, image_size=4 * grid, options=options, projection="none"),
            text=TransformerTextConfig(
                width=heads * head, layers=depth + 1, heads=heads, context_length=5, pad=5, **SIGLIP_TEXT
            ),
            init_logit_bias=-10.0,
        )
    with torch.device("meta"):
        model = build_model(config, vocab_size=vocabulary, seed=0)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}


SIZES = {
    "heads": st.integers(1, 3),
    "head": st.integers(1, 5).map(lambda half: 2 * half),
    "depth": st.sampled_from([1, 2, 11]),
    "grid": st.integers(1, 4),
    "vocabulary": st.integers(1, 30),
}


@pytest.mark.parametrize(("family", "key_map"), [("clip", CLIP), ("siglip", SIGLIP)])
@settings(max_examples=8)
@given(sizes=st.fixed_dictionaries(SIZES))
def test_there_and_back_is_the_identity(family: str, key_map: KeyMap, sizes: dict[str, int]) -> None:
    ours = weights(family, **sizes)
    theirs = key_map.to_theirs(ours)
    back = key_map.to_ours(theirs)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    again = key_map.to_theirs(back)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def library_weights(family: str) -> dict[str, torch.Tensor]:
    """Every weight of a tiny model, as the library itself has them."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    tower = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 11, "max_position_embeddings": 5, "bos_token_id": 9, "eos_token_id": 10}
    vision = tower | {"image_size": 8, "patch_size": 4}
    model: Any
    if family == "CLIPModel":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6))
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    return dict(sorted(model.state_dict().items()))


@pytest.mark.parametrize(("family", "key_map"), [("CLIPModel", CLIP), ("SiglipModel", SIGLIP)])
def test_the_librarys_names_are_as_recorded_and_all_known(
    family: str, key_map: KeyMap, request: pytest.FixtureRequest
) -> None:
    weights = library_weights(family)
    names = "".join(f"{name} {tuple(tensor.shape)}\n" for name, tensor in weights.items())
    file = GOLDEN / f"transformers_{family}.txt"
    if request.config.getoption("--update-golden"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(names)
    assert names == file.read_text(), f"{family} has other weights than recorded: --update-golden if that is meant"
    assert key_map.to_theirs(key_map.to_ours(weights)).keys() == weights.keys()


def test_a_parameter_without_a_place_is_named() -> None:
    with pytest.raises(InputError, match=r"transformers' CLIPModel has no place for the parameter logit_bias"):
        CLIP.to_theirs({"logit_bias": torch.zeros(1)})
    with pytest.raises(InputError, match=r"transformers' SiglipModel has no place for .*projection\.weight"):
        SIGLIP.to_theirs({"image_tower.projection.weight": torch.zeros(2, 2)})
