"""Useful FLOPs: the figures that are published, and what torch's counter finds in the plain models."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn

from clipx.config.model import HuggingFaceTextConfig, TimmImageConfig, TransformerTextConfig
from clipx.models.flops import flop_counter, image_flops, text_flops
from clipx.models.text_tower import build_text_tower
from clipx.models.vision_tower import VisionTower, build_vision_tower

OPTIONS = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}


def vision_tower(name: str, options: dict[str, Any], *, image_size: int = 32) -> VisionTower:
    return build_vision_tower(TimmImageConfig(name=name, image_size=image_size, options=options), embed_dim=8)


def counted(model: nn.Module, *inputs: Any) -> int:
    model.eval().requires_grad_(False)
    with flop_counter() as counter:
        model(*inputs)
    return counter.get_total_flops()


# Forward GFLOPs per image at 224 pixels, and per text of 77 and of 16 tokens: 2 per multiply-add by the shapes of the
# CLIP paper's table 20 (arXiv 2103.00020).
@pytest.mark.parametrize(
    ("name", "gflops"),
    [
        ("vit_base_patch32_clip_224", 8.82),
        ("vit_base_patch16_clip_224", 35.13),
        ("vit_large_patch14_clip_224", 162.03),
    ],
)
def test_images_of_clips_models(name: str, gflops: float) -> None:
    with torch.device("meta"):
        model = vision_tower(name, {}, image_size=224)
    assert image_flops(model, image_size=224) == pytest.approx(gflops * 1e9, rel=1e-3)


@pytest.mark.parametrize(("width", "heads", "at_77", "at_16"), [(512, 8, 5.96, 1.21), (768, 12, 13.30, 2.73)])
def test_texts_of_clips_models(width: int, heads: int, at_77: float, at_16: float) -> None:
    with torch.device("meta"):
        config = TransformerTextConfig(width=width, heads=heads)
        flops = text_flops(build_text_tower(config, vocab_size=100, embed_dim=width))
    for length, gflops in ((77, at_77), (16, at_16)):
        found = flops.forward(num_texts=1, num_tokens=length, sum_squared_lengths=length**2)
        assert found == pytest.approx(gflops * 1e9, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_base_patch32_clip_224", OPTIONS),
        ("vit_base_patch16_224", OPTIONS | {"reg_tokens": 3}),
        ("vit_base_patch16_siglip_224", OPTIONS),
        ("vit_base_patch16_gap_224", OPTIONS),
        ("vit_base_patch16_224", OPTIONS | {"block_fn": timm.models.vision_transformer.ParallelScalingBlock}),
        ("resnet10t", {}),
        ("mobilenetv3_small_050", {}),
        ("vit_small_r26_s32_224", {}),
    ],
)
def test_images_are_counted_as_torch_counts_timms_own_model(name: str, options: dict[str, Any]) -> None:
    model = vision_tower(name, options)
    arguments = {} if name.startswith(("resnet", "mobilenet")) else {"img_size": 32}
    plain = timm.create_model(name, num_classes=0, **arguments, **options)
    width = model.projection.in_features
    assert image_flops(model, image_size=32) == counted(plain, torch.zeros(1, 3, 32, 32)) + 2 * width * 8


def test_every_kind_of_projection_counts() -> None:
    none, linear, mlp = (
        build_vision_tower(
            TimmImageConfig(name="vit_base_patch16_siglip_224", image_size=32, options=OPTIONS, projection=kind),
            embed_dim=32,
        )
        for kind in ("none", "linear", "mlp")
    )
    trunk = image_flops(none, image_size=32)
    assert image_flops(linear, image_size=32) - trunk == 2 * 32 * 32
    assert image_flops(mlp, image_size=32) - trunk == 2 * (32 * 64 + 64 * 32)


def test_only_kept_patches_and_the_images_own_size_count() -> None:
    model = vision_tower("vit_base_patch32_clip_224", OPTIONS)
    larger = vision_tower("vit_base_patch32_clip_224", OPTIONS, image_size=64)
    assert image_flops(model, image_size=64) == image_flops(larger, image_size=64)
    # A quarter of an image four times as large: the same patches.
    assert image_flops(larger, image_size=64, patch_drop=0.75) == image_flops(model, image_size=32)


def test_texts_are_counted_by_real_tokens_and_squared_lengths() -> None:
    config = TransformerTextConfig(width=32, heads=4, layers=2, context_length=16)
    flops = text_flops(build_text_tower(config, vocab_size=100, embed_dim=8))
    block = 2 * 12 * 32**2
    expected = 3 * 2 * 32 * 8 + 2 * (block * (4 + 9 + 16) + 4 * 32 * (16 + 81 + 256))
    assert flops.forward(num_texts=3, num_tokens=29, sum_squared_lengths=16 + 81 + 256) == expected


@pytest.mark.parametrize("kind", ["BertConfig", "T5Config"])  # the first runs packed, the second padded
def test_transformers_encoders_are_counted(kind: str, tmp_path: Path) -> None:
    sizes = {
        "BertConfig": {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": 32},
        "T5Config": {"num_layers": 2, "num_heads": 4, "d_ff": 64, "d_model": 32, "d_kv": 8},
    }[kind]
    getattr(transformers, kind)(vocab_size=100, **sizes).save_pretrained(tmp_path)
    config = HuggingFaceTextConfig(name=str(tmp_path), context_length=16, pretrained=False)
    flops = text_flops(build_text_tower(config, vocab_size=100, embed_dim=8))
    assert flops.per_text == 2 * 32 * 8
    assert flops.per_token == 2 * 2 * (4 * 32**2 + 2 * 32 * 64)
    assert flops.per_squared_length == 2 * 4 * 32


def test_transformers_encoders_are_counted_where_they_stand(tmp_path: Path) -> None:
    """On a GPU, when a run is built there; the meta device stands for it."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": 32}
    transformers.BertConfig(vocab_size=100, **shape).save_pretrained(tmp_path)
    config = HuggingFaceTextConfig(name=str(tmp_path), context_length=16, pretrained=False)
    tower = build_text_tower(config, vocab_size=100, embed_dim=8)
    assert text_flops(tower) == text_flops(tower.to("meta"))
