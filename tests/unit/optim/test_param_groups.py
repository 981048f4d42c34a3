import pytest
import timm
import torch
from tiny_clip import CLIP_VOCABULARY, tiny_model_config
from torch import nn
from transformers import BertConfig, BertModel

from clipx.config.optim import AdamWConfig, TowerOptimConfig
from clipx.models.clip import CLIP, build_model
from clipx.optim.param_groups import heights, learning_rate_scales, lock, parameter_groups


@pytest.fixture(scope="module")
def clip() -> CLIP:
    """Two image blocks, three text blocks."""
    return build_model(tiny_model_config(), vocab_size=CLIP_VOCABULARY, seed=0)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.class_token = nn.Parameter(torch.randn(1, 1, 3))
        self.positions = nn.Parameter(torch.randn(1, 5, 3))
        self.log_logit_scale = nn.Parameter(torch.zeros(1))
        self.locked = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def names_of(model: nn.Module, group: dict[str, list[nn.Parameter]]) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in group["params"]]


def test_only_matrices_and_embeddings_decay_and_all_parameters_belong() -> None:
    model = Small()
    decayed, others = parameter_groups(model, AdamWConfig(weight_decay=0.2))
    assert names_of(model, decayed) == ["positions", "locked", "linear.weight"]
    assert names_of(model, others) == ["class_token", "log_logit_scale", "linear.bias", "norm.weight", "norm.bias"]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)


def test_the_default_has_two_groups_in_the_order_of_the_model(clip: CLIP) -> None:
    decayed, others = parameter_groups(clip, AdamWConfig())
    matrices = [name for name, parameter in clip.named_parameters() if parameter.squeeze().ndim >= 2]
    assert names_of(clip, decayed) == matrices
    assert names_of(clip, others) == [name for name, _ in clip.named_parameters() if name not in matrices]
    assert decayed["lr_scale"] == others["lr_scale"] == 1.0


def test_tower_rates_times_layer_decay(clip: CLIP) -> None:
    image, text = TowerOptimConfig(lr_scale=0.1, layer_decay=0.5), TowerOptimConfig(lr_scale=2.0)
    scales = learning_rate_scales(clip, AdamWConfig(image=image, text=text))
    assert set(scales) == {name for name, _ in clip.named_parameters()}
    wanted = {
        "log_logit_scale": 1.0,
        "image_tower.projection.weight": 0.1,
        "image_tower.trunk.norm.weight": 0.1,
        "image_tower.trunk.blocks.1.mlp.fc2.bias": 0.1 * 0.5,
        "image_tower.trunk.blocks.0.norm1.weight": 0.1 * 0.25,
        "image_tower.trunk.norm_pre.weight": 0.1 * 0.125,
        "image_tower.trunk.cls_token": 0.1 * 0.125,
        "image_tower.trunk.pos_embed": 0.1 * 0.125,
        "image_tower.trunk.patch_embed.proj.weight": 0.1 * 0.125,
        "text_tower.token_embedding.weight": 2.0,
        "text_tower.blocks.0.attn.qkv.weight": 2.0,
        "text_tower.projection.weight": 2.0,
    }
    assert {name: scales[name] for name in wanted} == wanted


def test_groups_by_share_and_decay_hold_every_parameter_once(clip: CLIP) -> None:
    config = AdamWConfig(image=TowerOptimConfig(layer_decay=0.5), weight_decay=0.3)
    groups = parameter_groups(clip, config)
    assert [(group["lr_scale"], group["weight_decay"]) for group in groups] == [
        (scale, decay) for scale in (1.0, 0.5, 0.25, 0.125) for decay in (0.3, 0.0)
    ]
    names = [name for group in groups for name in names_of(clip, group)]
    assert sorted(names) == sorted(name for name, _ in clip.named_parameters())
    again = parameter_groups(clip, config)
    assert [names_of(clip, group) for group in groups] == [names_of(clip, group) for group in again]


def test_heights_of_our_text_tower(clip: CLIP) -> None:
    found = heights(clip.text_tower)
    assert (found["token_embedding.weight"], found["position_embedding.weight"]) == (4, 4)
    assert [found[f"blocks.{i}.norm1.weight"] for i in range(3)] == [3, 2, 1]
    assert (found["norm.weight"], found["projection.weight"]) == (0, 0)


def test_heights_of_a_transformers_encoder() -> None:
    shape = BertConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    found = heights(BertModel(shape, add_pooling_layer=False))
    assert found["embeddings.word_embeddings.weight"] == found["embeddings.LayerNorm.bias"] == 4
    assert [found[f"encoder.layer.{i}.output.dense.weight"] for i in range(3)] == [3, 2, 1]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # stages of 2, 2, 6 and 2 blocks; a stage's downsampling goes with its first block
        (
            "convnext_atto",
            {
                "stem.0.weight": 13,
                "stages.0.blocks.0.conv_dw.weight": 12,
                "stages.1.downsample.1.weight": 10,
                "stages.1.blocks.0.conv_dw.weight": 10,
                "stages.2.blocks.5.conv_dw.weight": 3,
                "stages.3.blocks.1.conv_dw.weight": 1,
                "head.norm.weight": 0,
            },
        ),
        (
            "resnet18",
            {
                "conv1.weight": 9,
                "layer1.0.conv1.weight": 8,
                "layer4.1.bn2.weight": 1,
                "layer4.0.downsample.0.weight": 2,
            },
        ),
        (
            "vit_tiny_patch16_224",
            {"pos_embed": 13, "blocks.0.attn.qkv.weight": 12, "blocks.11.norm1.bias": 1, "norm.bias": 0},
        ),
    ],
)
def test_heights_of_timm_models(name: str, wanted: dict[str, int]) -> None:
    with torch.device("meta"):
        found = heights(timm.create_model(name, num_classes=0))
    assert {parameter: found[parameter] for parameter in wanted} == wanted


def test_without_repeated_blocks_all_learn_alike() -> None:
    assert set(heights(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))).values()) == {0}


def test_a_locked_tower_keeps_its_weights_but_trains_its_projection() -> None:
    model = build_model(tiny_model_config(), vocab_size=CLIP_VOCABULARY, seed=0)
    model.logit_bias = nn.Parameter(torch.zeros(1), requires_grad=False)  # an objective's own choice stays
    lock(model, frozenset())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["logit_bias"]
    lock(model, frozenset({"image"}))
    locked = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    trunk = {name for name, _ in model.named_parameters() if name.startswith("image_tower.trunk.")}
    assert locked == trunk | {"logit_bias"}
    lock(model, frozenset({"text"}))
    locked = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "text_tower.token_embedding.weight" in locked
    assert not {"text_tower.projection.weight", "image_tower.projection.weight", "log_logit_scale"} & locked


def test_attention_pooling_and_projections_learn_at_the_full_rate_and_single_tokens_do_not_decay() -> None:
    """Of a tower of SigLIP's shape, and of one with two layers between it and the shared space."""
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
    image = {"name": "vit_base_patch16_siglip_224", "options": options, "projection": "none"}
    model = build_model(tiny_model_config(image=image, text={"projection": "mlp", "bias": True}), vocab_size=9, seed=0)
    found = heights(model.image_tower)
    pool = {name: height for name, height in found.items() if name.startswith("trunk.attn_pool.")}
    assert set(pool.values()) == {0}
    assert (found["trunk.pos_embed"], found["trunk.blocks.1.norm1.weight"]) == (3, 1)
    text = heights(model.text_tower)
    assert {text[f"projection.{name}"] for name in ("0.weight", "2.weight", "2.bias")} == {0}
    groups = parameter_groups(model, AdamWConfig(lr=1.0, weight_decay=0.1))
    kept = {id(parameter) for group in groups if not group["weight_decay"] for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in kept}
    assert {"image_tower.trunk.attn_pool.latent", "text_tower.projection.2.bias", "log_logit_scale"} < names
    assert not {"image_tower.trunk.attn_pool.q.weight", "text_tower.projection.0.weight"} & names


def test_a_locked_tower_is_evaluated_so_that_no_statistics_move() -> None:
    image = {"name": "test_resnet", "options": {"drop_rate": 0.5}}
    model = build_model(tiny_model_config(image=image), vocab_size=CLIP_VOCABULARY, seed=0)
    before = {name: value.clone() for name, value in model.image_tower.state_dict().items()}
    images_BHWC = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    lock(model, frozenset({"image"}))
    first_BD, second_BD = model.image_tower(images_BHWC), model.image_tower(images_BHWC)
    assert torch.equal(first_BD, second_BD)
    assert all(torch.equal(value, before[name]) for name, value in model.image_tower.state_dict().items())
    assert model.image_tower.projection.training
    assert all(module.training for module in model.text_tower.modules())
    model.image_tower.train()
    assert not torch.equal(model.image_tower(images_BHWC), first_BD)  # the test would see them move
    assert not torch.equal(model.image_tower.state_dict()["trunk.bn1.running_mean"], before["trunk.bn1.running_mean"])
