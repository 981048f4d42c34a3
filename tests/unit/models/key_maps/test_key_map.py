import pytest
import torch
from tiny_clip import tiny_model_config, tiny_pretrained

from clipx.errors import InputError
from clipx.models.clip import build_model
from clipx.models.key_maps.huggingface import CLIP as HUGGINGFACE
from clipx.models.key_maps.open_clip import Towers, key_map

OPEN_CLIP = key_map(Towers())


@pytest.mark.parametrize("names", [HUGGINGFACE, OPEN_CLIP])
def test_there_and_back_is_the_identity(names):
    weights = tiny_pretrained().model.state_dict()
    back = names.to_ours(names.to_theirs(weights))
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("names", [HUGGINGFACE, OPEN_CLIP])
def test_what_goes_there_shares_no_memory(names):
    weights = tiny_pretrained().model.state_dict()
    theirs = names.to_theirs(weights)
    pointers = [tensor.data_ptr() for tensor in (*weights.values(), *theirs.values())]
    assert len(set(pointers)) == len(pointers)
    assert all(tensor.is_contiguous() for tensor in theirs.values())


def test_a_parameter_without_a_place_is_named():
    config = tiny_model_config()
    weights = build_model(config, vocab_size=16, seed=0).state_dict()
    with pytest.raises(InputError, match=r"trunk\.reg_token"):
        OPEN_CLIP.to_theirs(weights | {"image_tower.trunk.reg_token": torch.zeros(1)})
    with pytest.raises(InputError, match=r"transformers.*logit_bias"):
        HUGGINGFACE.to_theirs(weights | {"logit_bias": torch.zeros(1)})
    assert OPEN_CLIP.to_theirs({"logit_bias": torch.ones(1)})["logit_bias"].shape == ()


def test_what_is_no_weight_of_ours_is_left_out():
    assert HUGGINGFACE.to_ours({"vision_model.embeddings.position_ids": torch.zeros(1, 5)}) == {}
