"""Image tower: normalisation, pooling, initialisation, weight files, bad input."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from clipx.config.model import TimmImageConfig
from clipx.errors import InputError
from clipx.models.patch_drop import patch_keys
from clipx.models.vision_tower import VisionTower, build_vision_tower, check_image_size, check_patch_drop

OPTIONS = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def config(name: str = "vit_base_patch32_clip_224", **changes: Any) -> TimmImageConfig:
    return TimmImageConfig(**{"name": name, "image_size": 16, "options": OPTIONS} | changes)


def tower(**changes: Any) -> VisionTower:
    torch.manual_seed(0)
    return build_vision_tower(config(**changes), embed_dim=8)


def pictures(number: int = 3, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (number, size, size, 3), generator=generator, dtype=torch.uint8)


def test_pixels_are_normalised_in_float32() -> None:
    model = tower(mean=(0.5, 0.25, 0.1), std=(0.5, 0.2, 0.3))
    before = pictures()
    pixels = model.normalize(before)
    expected = (pictures().double() / 255 - torch.tensor([0.5, 0.25, 0.1])) / torch.tensor([0.5, 0.2, 0.3])
    assert torch.equal(before, pictures())
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (2, 4, 49, 3), (5, 3), (3,), (0, 4, 9, 3)])
def test_pixels_are_normalised_alike_to_the_bit_whatever_their_shape(shape: tuple[int, ...]) -> None:
    """Channel by channel, as on CUDA; a view that is not contiguous, too."""
    model = tower(mean=(0.5, 0.25, 0.1), std=(0.5, 0.2, 0.3))
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    expected = (pixels - model.mean_C) / model.std_C
    assert torch.equal(model.normalize(pixels), expected)
    if len(shape) > 2:
        assert torch.equal(model.normalize(pixels.transpose(0, 1)), expected.transpose(0, 1))


def test_clip_vit_pools_the_class_token_after_the_final_norm() -> None:
    model = tower().eval()
    theirs = timm.create_model("vit_base_patch32_clip_224", img_size=16, num_classes=0, **OPTIONS).eval()
    theirs.load_state_dict(model.trunk.state_dict())
    tokens_BNC = theirs.forward_features(model.normalize(pictures()).permute(0, 3, 1, 2))
    assert tokens_BNC.shape == (3, 1 + 4, 32)
    torch.testing.assert_close(model(pictures()), model.projection(tokens_BNC[:, 0]))
    assert model.trunk.norm.eps == model.trunk.norm_pre.eps == model.trunk.blocks[0].norm1.eps == 1e-5


def test_weights_hold_no_constants_of_the_preprocessing() -> None:
    assert {name.split(".")[0] for name in tower().state_dict()} == {"trunk", "projection"}


def test_a_clip_vit_from_scratch_has_clips_deviations() -> None:
    torch.manual_seed(0)
    options = {"patch_size": 4, "embed_dim": 256, "depth": 4, "num_heads": 4}
    model = build_vision_tower(config(image_size=64, options=options), embed_dim=128)
    state = model.state_dict()
    expected = {
        "trunk.cls_token": 256**-0.5,
        "trunk.pos_embed": 256**-0.5,
        "trunk.blocks.3.attn.qkv.weight": 256**-0.5,
        "trunk.blocks.3.attn.proj.weight": (256 * 8) ** -0.5,
        "trunk.blocks.3.mlp.fc1.weight": 512**-0.5,
        "trunk.blocks.3.mlp.fc2.weight": (256 * 8) ** -0.5,
        "projection.weight": 256**-0.5,
    }
    for name, std in expected.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.1 if "cls" in name else 0.03), name


def test_other_models_keep_timms_initialisation() -> None:
    model = tower(name="vit_base_patch16_siglip_224")
    torch.manual_seed(0)
    theirs = timm.create_model("vit_base_patch16_siglip_224", img_size=16, num_classes=0, **OPTIONS)
    for name, value in theirs.state_dict().items():
        assert torch.equal(model.trunk.state_dict()[name], value), name


def test_every_parameter_gets_a_gradient() -> None:
    model = tower().train()
    model(pictures()).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_convolutional_model_takes_any_size() -> None:
    model = tower(name="resnet18", image_size=40, options={})
    assert model(pictures(2, size=40)).shape == (2, 8)


def test_a_model_whose_head_is_wider_than_its_features() -> None:
    assert tower(name="mobilenetv3_small_050", image_size=32, options={})(pictures(2, size=32)).shape == (2, 8)


def test_a_weight_file_is_loaded(tmp_path: Path) -> None:
    first = tower()
    file = tmp_path / "weights.pth"
    torch.save(first.trunk.state_dict() | {"head.weight": torch.zeros(4, 32), "head.bias": torch.zeros(4)}, file)
    torch.manual_seed(5)
    second = build_vision_tower(config(pretrained=str(file)), embed_dim=8)
    for name, value in first.trunk.state_dict().items():
        assert torch.equal(second.trunk.state_dict()[name], value), name


def test_a_weight_file_of_another_size_has_its_positions_resampled(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(tower().trunk.state_dict(), file)
    larger = tower(image_size=32, pretrained=str(file))
    assert larger(pictures(2, size=32)).shape == (2, 8)


def test_patch_dropout_is_asked_for_by_the_call_and_leaves_no_trace() -> None:
    model = tower(image_size=32, patch_drop=0.5).train()
    keys_B = patch_keys(0, 0, torch.arange(3))
    whole = model(pictures(size=32))
    part = model(pictures(size=32), keys_B, patch_drop=0.5)
    assert not torch.allclose(part, whole)
    assert torch.equal(model(pictures(size=32), keys_B), whole)
    assert torch.equal(model.eval()(pictures(size=32), keys_B, patch_drop=0.5), part)


def test_patch_dropout_without_keys_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="keys"):
        tower()(pictures(), patch_drop=0.5)


def test_patch_dropout_of_other_models() -> None:
    model = tower(name="resnet10t", options={})
    check_patch_drop(tower(), 0.5, name="stages.first.patch_drop")
    check_patch_drop(model, 0.0, name="stages.first.patch_drop")
    with pytest.raises(InputError, match=r"stages\.first\.patch_drop=0\.5 needs a plain ViT.* is a ResNet") as caught:
        check_patch_drop(model, 0.5, name="stages.first.patch_drop")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "full", "size", "message"),
    [
        ("vit_base_patch32_clip_224", 16, 24, None),
        ("vit_base_patch32_clip_224", 20, 20, None),  # its own size, with pixels that no patch covers
        ("vit_base_patch32_clip_224", 16, 20, "small=20 is no multiple of .* 8 x 8 pixels; nearest that are: 16, 24"),
        ("vit_base_patch32_clip_224", 16, 4, "nearest that are: 8$"),
        ("resnet10t", 32, 40, None),
        ("swin_tiny_patch4_window7_224", 64, 64, None),
        ("swin_tiny_patch4_window7_224", 64, 96, "small=96: the image tower, a SwinTransformer, does not take it"),
    ],
)
def test_image_sizes_of_a_stage(name: str, full: int, size: int, message: str | None) -> None:
    options = OPTIONS if name.startswith("vit") else {}
    model = tower(name=name, image_size=full, options=options | ({"depths": (1, 1, 1, 1)} if "swin" in name else {}))
    state = torch.get_rng_state()
    if message is None:
        check_image_size(model, size, name="small")
    else:
        with pytest.raises(InputError, match=message) as caught:
            check_image_size(model, size, name="small")
        assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state)
    assert message is not None or model(pictures(2, size=size)).shape == (2, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_base_patch32_clip224"}, "no timm model; nearest: vit_base_patch32_clip_224"),
        ({"name": "zzzz"}, "no timm model"),
        ({"options": {"embed_dimension": 3}}, "embed_dimension"),
        ({"options": {**OPTIONS, "num_heads": 5}}, "num_heads"),
        ({"options": {"img_size": 3}}, "may not hold img_size"),
        ({"pretrained": "no/such.pth"}, "no such file"),
        ({"name": "resnet18", "options": {}, "patch_drop": 0.5}, "patch_drop=0.5 needs a plain ViT"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tower(**changes)
    assert "\n" not in str(caught.value)


def test_a_weight_file_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    state = tower().trunk.state_dict()
    del state["blocks.1.mlp.fc1.weight"]
    torch.save(state, file)
    with pytest.raises(InputError, match=r"weights\.pth lacks 1 weights of the model, blocks\.1\.mlp\.fc1") as caught:
        tower(pretrained=str(file))
    assert "\n" not in str(caught.value)


def test_an_unreadable_weight_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"weights\.pth") as caught:
        tower(pretrained=str(file))
    assert "\n" not in str(caught.value)
