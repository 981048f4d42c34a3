"""Our way through timm's plain ViT: timm's own results and gradients, from any wrapper, for less work."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils._python_dispatch import TorchDispatchMode

from clipx.config.model import TimmImageConfig
from clipx.models import vit
from clipx.models.flops import flop_counter
from clipx.models.patch_drop import kept_patches, patch_keys
from clipx.models.vision_tower import VisionTower, build_vision_tower
from clipx.models.vit import Block

OPTIONS = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
SIZE = 35  # four patches and 3 pixels that a convolution would leave out
EXTRAS = {"init_values": 0.1, "qk_norm": True, "scale_attn_norm": True, "reg_tokens": 2, "qkv_bias": False}
MODELS = [
    ("vit_base_patch32_clip_224", {}),
    ("vit_base_patch16_224", EXTRAS),
    ("deit3_base_patch16_224", {}),  # positions for patches only
    ("vit_base_patch16_siglip_224", {}),  # no class token, attention pooling
    ("vit_base_patch16_gap_224", {}),
    ("vit_base_patch16_224", {"pos_embed": "none"}),
    ("vit_base_patch16_224", {"block_fn": vision_transformer.ParallelScalingBlock}),
    ("vit_base_patch16_224", {"attn_layer": "diff"}),
    ("vit_base_patch16_224", {"mlp_layer": timm.layers.SwiGLU}),
]


def tower(name: str = "vit_base_patch32_clip_224", **options: Any) -> VisionTower:
    torch.manual_seed(0)
    config = TimmImageConfig(name=name, image_size=SIZE, options=OPTIONS | options)
    model = build_vision_tower(config, embed_dim=8).train()
    for parameter in model.parameters():  # biases and gains too, which start at 0 and 1
        nn.init.normal_(parameter, std=0.3)
    return model


def pictures(size: int = SIZE) -> Tensor:
    return torch.randint(0, 256, (3, size, size, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def timms(model: VisionTower, name: str = "vit_base_patch32_clip_224", **options: Any) -> VisionTower:
    """A tower of the same weights that goes timm's own way."""
    trunk = timm.create_model(name, num_classes=0, **{"img_size": SIZE} | OPTIONS | options)
    trunk.load_state_dict(model.trunk.state_dict())
    other = copy.deepcopy(model)
    other.trunk, other.is_plain_vit = trunk.to(model.projection.weight.dtype).train(model.training), False
    return other


def gradients(model: VisionTower, output_BD: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    weight_BD = torch.linspace(-1, 1, output_BD.numel(), dtype=output_BD.dtype).view_as(output_BD)
    return dict(zip(names, torch.autograd.grad((output_BD * weight_BD).sum(), parameters), strict=True))


def assert_same(model: VisionTower, other: VisionTower, *, output: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    theirs = gradients(other, expected)
    for name, gradient in gradients(model, output).items():
        scale = theirs[name].abs().max().clamp(min=1)
        torch.testing.assert_close(
            gradient / scale, theirs[name] / scale, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_is_timms_forward_in_value_and_every_gradient(
    name: str, options: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    model = tower(name, **options).to(dtype)
    other = timms(model, name, **options)
    assert model.is_plain_vit
    assert_same(model, other, output=model(pictures()), expected=other(pictures()), tolerance=tolerance)


def test_patches_are_left_out_as_if_after_their_embedding() -> None:
    model = tower(reg_tokens=1).double()
    other = timms(model, reg_tokens=1)
    keys_B = patch_keys(0, 0, torch.arange(3))
    kept_BK = kept_patches(keys_B, num_patches=16, rate=0.7)

    def drop(x_BNC: Tensor) -> Tensor:
        return torch.stack([torch.cat((x_NC[:2], x_NC[2:][kept])) for x_NC, kept in zip(x_BNC, kept_BK, strict=True)])

    other.trunk.patch_drop.forward = drop
    output = model(pictures(), keys_B, patch_drop=0.7)
    assert_same(model, other, output=output, expected=other(pictures()), tolerance=1e-12)


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("name", ["vit_base_patch32_clip_224", "deit3_base_patch16_224"])
def test_images_of_another_size_see_resampled_positions(name: str, size: int) -> None:
    model = tower(name)
    other = timms(model, name, dynamic_img_size=True)
    output, expected = model(pictures(size)), other(pictures(size))
    assert_same(model, other, output=output, expected=expected, tolerance=1e-5)
    assert gradients(model, model(pictures(size)))["trunk.pos_embed"].abs().sum(-1).min() > 0


def test_resampled_positions_have_a_deterministic_gradient() -> None:
    """On CUDA interpolation has none, and a run with `deterministic: true` would end at its first backward pass."""
    seen: list[str] = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Recorded():
        tower()(pictures(48)).sum().backward()
    assert any("upsample" in name for name in seen)
    assert not any("upsample" in name and "backward" in name for name in seen)


def test_positions_are_resampled_in_float32_under_autocast() -> None:
    model = tower()
    expected = vit._positions(model.trunk, (6, 5))[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vit._positions(model.trunk, (6, 5))[1], expected)


def test_the_last_block_works_for_the_class_token_alone() -> None:
    model = tower().eval()
    counts = []
    for candidate in (model, timms(model)):
        with flop_counter() as counter:
            candidate(pictures())
        counts.append(counter.get_total_flops())
    others, width = 3 * 16, 32
    # Queries, attention, its projection and the feed-forward layers of all other tokens.
    assert counts[1] - counts[0] == 2 * others * (1 + 1 + 8) * width**2 + 4 * others * 17 * width


def test_dropped_patches_are_not_embedded() -> None:
    model = tower()
    shapes = []
    model.trunk.patch_embed.norm.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    model(pictures(), patch_keys(0, 0, torch.arange(3)), patch_drop=0.75)
    assert shapes == [(3, 4, 32)]


def test_names_and_module_types_stay_timms() -> None:
    model = tower()
    theirs = timm.create_model("vit_base_patch32_clip_224", img_size=SIZE, num_classes=0, **OPTIONS)
    assert list(model.trunk.state_dict()) == list(theirs.state_dict())
    assert all(isinstance(block, vision_transformer.Block) for block in model.trunk.blocks)
    torch.testing.assert_close(copy.deepcopy(model)(pictures()), model(pictures()))


@pytest.mark.parametrize("options", [{"block_fn": vision_transformer.ResPostBlock}, {"attn_layer": "diff"}])
def test_blocks_of_other_kinds_stay_timms(options: dict[str, Any]) -> None:
    assert not any(isinstance(block, Block) for block in tower("vit_base_patch16_224", **options).trunk.blocks)


def test_stochastic_depth_and_dropout_work_in_the_last_block() -> None:
    model = tower("vit_base_patch16_224", drop_path_rate=0.5, proj_drop_rate=0.2, attn_drop_rate=0.2, pos_drop_rate=0.1)
    assert not torch.equal(model(pictures()), model(pictures()))
    model.eval()
    torch.testing.assert_close(model(pictures()), timms(model, "vit_base_patch16_224")(pictures()))


@pytest.mark.parametrize("wrapper", ["checkpoint", "compile"])
def test_blocks_may_be_wrapped(wrapper: str) -> None:
    model = tower().double()
    other = copy.deepcopy(model)
    expected = other(pictures())
    for number, block in enumerate(model.trunk.blocks):
        if wrapper == "compile":
            block.compile(backend="eager", fullgraph=True)
        else:
            model.trunk.blocks[number] = checkpoint_wrapper(block)
    output = model(pictures())
    theirs = gradients(other, expected)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients(model, output).items():
        torch.testing.assert_close(gradient, theirs[name.replace("_checkpoint_wrapped_module.", "")])
