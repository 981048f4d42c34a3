import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import picture

from clipx.config.data import AugmentConfig
from clipx.data.transforms import EvalTransform, TrainTransform


def test_training_is_a_function_of_picture_and_seed_and_leaves_the_generator_alone():
    transform = TrainTransform(16, AugmentConfig(crop_scale=(0.2, 0.9), flip=0.5))
    image = picture(0, (60, 40))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = transform(image, seed=123)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(transform(image, seed=123), first)
    assert len({transform(image, seed=seed).numpy().tobytes() for seed in range(20)}) == 20
    assert (first.dtype, tuple(first.shape)) == (torch.uint8, (16, 16, 3))
    transform(image, seed=2**63 - 1)


def test_the_generator_comes_back_when_the_picture_breaks_the_transform():
    transform = TrainTransform(16, AugmentConfig())
    before = torch.get_rng_state()
    with pytest.raises(Exception):  # noqa: B017, PT011
        transform("no picture", seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_flip_happens_with_its_probability():
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    image = picture(0, (16, 16))
    never, always, half = (TrainTransform(16, AugmentConfig(flip=p, **whole)) for p in (0.0, 1.0, 0.5))
    pixels = torch.from_numpy(np.array(image))
    assert torch.equal(never(image, seed=0), pixels)
    assert torch.equal(always(image, seed=0), pixels.flip(1))
    flipped = sum(torch.equal(half(image, seed=seed), pixels.flip(1)) for seed in range(400))
    assert 150 < flipped < 250


def test_the_crop_keeps_its_share_of_the_area():
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 3)))
    transform = TrainTransform(32, AugmentConfig(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0)))
    spans = [int(out.max()) - int(out.min()) for out in (transform(ramp, seed=seed) for seed in range(20))]
    assert all(118 <= span <= 128 for span in spans)  # half of the height


@pytest.mark.parametrize("size", [(24, 24), (50, 31), (31, 50), (12, 40), (25, 24), (27, 24), (29, 24), (31, 24)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_evaluation_equals_open_clip(size, mode):
    transform = pytest.importorskip("open_clip.transform").image_transform(
        24, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    image = picture(1, size).convert(mode)
    expected = (transform(image) * 255).round().to(torch.uint8).permute(1, 2, 0)
    assert torch.equal(EvalTransform(24)(image), expected)


@pytest.mark.parametrize("size", [(24, 24), (50, 30), (30, 50), (12, 40), (25, 24), (29, 24)])
def test_evaluation_equals_transformers_on_pillow(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, do_normalize=False, do_rescale=False
    )
    image = picture(2, size)
    expected = torch.as_tensor(processor(image)["pixel_values"][0]).permute(1, 2, 0)
    assert torch.equal(EvalTransform(24)(image), expected.to(torch.uint8))
