"""The whole model: unit embeddings in the compute dtype, the temperature, seeds, and parts of a batch."""

import math
from dataclasses import fields, replace

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.errors import InputError
from clipx.models import packing
from clipx.models.clip import CLIP, _blocks, build_model
from clipx.types import Batch, Embeddings

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
CONFIG = ModelConfig(
    embed_dim=6,
    image=TimmImageConfig(name="vit_base_patch32_clip_224", image_size=16, patch_drop=0.5, options=VIT),
    text=TransformerTextConfig(width=16, layers=1, heads=2, context_length=9),
)


def model(config: ModelConfig = CONFIG, seed: int = 0) -> CLIP:
    return build_model(config, vocab_size=20, seed=seed)


def batch(size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    lengths_B = torch.randint(2, 10, (size,), generator=generator)
    return Batch(
        index=3,
        images_IHWC=torch.randint(0, 256, (size, 16, 16, 3), generator=generator, dtype=torch.uint8),
        tokens_T=torch.randint(0, 20, (int(lengths_B.sum()),), generator=generator),
        lengths_B=lengths_B,
        max_length=9,
        sample_id_I=torch.arange(size),
        slot_I=torch.arange(size),
        source_I=torch.zeros(size, dtype=torch.int64),
    )


def test_embeddings_have_unit_length_and_the_temperature_is_clips() -> None:
    embeddings = model()(batch(), seed=0)
    for x_BD in (embeddings.image_BD, embeddings.text_BD):
        assert x_BD.shape == (6, 6)
        torch.testing.assert_close(x_BD.norm(dim=1), torch.ones(6))
    assert embeddings.logit_scale.shape == (1,)
    assert embeddings.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert embeddings.logit_bias is None


def test_a_bias_is_there_when_asked_for() -> None:
    clip = model(replace(CONFIG, init_logit_bias=-10.0))
    bias = clip(batch(), seed=0).logit_bias
    assert bias is not None
    assert bias.tolist() == [-10.0]
    bias.sum().backward()
    assert clip.logit_bias.grad.tolist() == [1.0]


def test_under_autocast_embeddings_are_bf16_and_the_temperature_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model()(batch(), seed=0)
    assert embeddings.image_BD.dtype == embeddings.text_BD.dtype == torch.bfloat16
    assert embeddings.logit_scale.dtype == torch.float32
    # Normalised in float32 and rounded once: each component is within half a unit in the last place.
    assert (embeddings.image_BD.double().norm(dim=1) - 1).abs().max() < 2**-8


def test_float64_stays_float64() -> None:
    embeddings = model().double()(batch(), seed=0)
    assert embeddings.image_BD.dtype == embeddings.text_BD.dtype == embeddings.logit_scale.dtype == torch.float64
    torch.testing.assert_close(embeddings.image_BD.norm(dim=1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # bfloat16: through the varlen kernel
@pytest.mark.parametrize("bucketed", [False, True])
def test_a_forward_pass_on_a_gpu_never_waits_for_it(
    dtype: torch.dtype, bucketed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake tensors have a device and a shape but no values: what reads one on the host raises, as do two devices."""
    monkeypatch.setattr(packing, "_has_flash", lambda device: True)
    clip, whole, cuda = model(), batch(), torch.device("cuda", 0)
    clip.text_tower.bucketed = bucketed
    with FakeTensorMode():
        for module in clip.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(torch.empty(weight.shape, dtype=dtype, device=cuda)))
            for name, constant in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(constant.shape, device=cuda))
        tensors = {
            field.name: torch.empty(value.shape, dtype=value.dtype, device=cuda)
            for field in fields(Batch)
            if isinstance(value := getattr(whole, field.name), torch.Tensor)
        }
        larger = torch.empty(6, 32, 32, 3, dtype=torch.uint8, device=cuda)  # resamples positions
        embeddings = clip(replace(whole, **tensors | {"images_IHWC": larger}), seed=0, patch_drop=0.5)
    for x_BD in (embeddings.image_BD, embeddings.text_BD):
        assert (x_BD.device, x_BD.dtype) == (cuda, dtype)


def test_micro_batches_embed_as_the_whole_and_again() -> None:
    clip = model().double().train()
    whole = clip(batch(), seed=4, patch_drop=0.5)
    for _ in range(2):
        parts: list[Embeddings] = [clip(part, seed=4, patch_drop=0.5) for part in batch().micro_batches(2)]
        torch.testing.assert_close(torch.cat([part.image_BD for part in parts]), whole.image_BD)
        torch.testing.assert_close(torch.cat([part.text_BD for part in parts]), whole.text_BD)
    assert not torch.allclose(clip(batch(), seed=5, patch_drop=0.5).image_BD, whole.image_BD)  # other patches
    assert not torch.allclose(clip(batch(), seed=4).image_BD, whole.image_BD)  # all patches
    torch.testing.assert_close(clip.encode_image(batch().images_IHWC), clip(batch(), seed=5).image_BD)


def test_the_clamp_holds_the_multiplier_and_lets_it_come_back() -> None:
    clip = model()
    with torch.no_grad():
        clip.log_logit_scale.fill_(5.0)
    assert clip.log_logit_scale.exp().item() > 100
    clip.clamp_logit_scale_()
    embeddings = clip(batch(), seed=0)
    assert embeddings.logit_scale.item() == pytest.approx(100, rel=1e-6)
    embeddings.logit_scale.sum().backward()
    assert clip.log_logit_scale.grad.item() == pytest.approx(100, rel=1e-6)
    with torch.no_grad():
        clip.log_logit_scale.fill_(1.0)
    clip.clamp_logit_scale_()
    assert clip.log_logit_scale.item() == 1.0


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("vit_base_patch32_clip_224", {"Block"}),
        ("twins_svt_small", {"Block"}),  # its largest list is one of lists, which nobody calls
        ("efficientvit_b0", {"EfficientVitStage"}),  # its largest list is the head, where an activation is in place
        ("vgg11", set()),
    ],
)
def test_blocks_are_modules_that_are_called_and_more_than_a_layer(name: str, kinds: set[str]) -> None:
    with torch.device("meta"):
        trunk = timm.create_model(name, num_classes=0)
    assert {type(block).__name__ for block in _blocks(trunk)} == kinds


def test_weights_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = model().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    second, other = model().state_dict(), model(seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["image_tower.projection.weight"], other["image_tower.projection.weight"])
    assert not torch.equal(first["text_tower.projection.weight"], other["text_tower.projection.weight"])


def test_state_dict_names_are_the_contract_with_exports() -> None:
    block = [
        f"{part}.{kind}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    ]
    expected = {"log_logit_scale"}
    expected |= {f"image_tower.trunk.{name}" for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")}
    expected |= {f"image_tower.trunk.{norm}.{kind}" for norm in ("norm_pre", "norm") for kind in ("weight", "bias")}
    expected |= {f"{stack}.blocks.0.{name}" for stack in ("image_tower.trunk", "text_tower") for name in block}
    expected |= {"image_tower.projection.weight", "text_tower.projection.weight"}
    expected |= {f"text_tower.{name}_embedding.weight" for name in ("token", "position")}
    expected |= {f"text_tower.norm.{kind}" for kind in ("weight", "bias")}
    assert set(model().state_dict()) == expected


def test_a_multiplier_that_starts_above_its_maximum_is_refused() -> None:
    with pytest.raises(InputError, match=r"init_logit_scale=20.0 is above model.max_logit_scale=10.0"):
        model(replace(CONFIG, init_logit_scale=20.0, max_logit_scale=10.0))
    at_maximum = model(replace(CONFIG, init_logit_scale=10.0, max_logit_scale=10.0))
    assert at_maximum.log_logit_scale.item() == pytest.approx(math.log(10))
