from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from clipx.config.data import AugmentConfig, JitterConfig, RandAugmentConfig
from clipx.data import device_augment
from clipx.data.device_augment import DeviceAugment

ALL = AugmentConfig(color_jitter=JitterConfig(), grayscale=0.2, rand_augment=RandAugmentConfig())


def noise(count, size=12):
    return torch.randint(0, 256, (count, size, size + 2, 3), dtype=torch.uint8, generator=torch.Generator())


def drawn(augment, count):
    """The stages of many seeds."""
    bits = device_augment.counter_random.fold(np.arange(count, dtype=np.int64), -1)
    return list(DeviceAugment(augment)._steps(bits))


@pytest.mark.parametrize(
    "augment",
    [
        ALL,
        AugmentConfig(color_jitter=JitterConfig(probability=1.0)),
        AugmentConfig(rand_augment=RandAugmentConfig(num_ops=3, magnitude=30)),
    ],
)
@settings(max_examples=10)
@given(data=st.data())
def test_a_picture_does_not_depend_on_its_batch(augment, data):
    images, seeds = noise(40), torch.arange(40) * 2**50
    transform = DeviceAugment(augment)
    whole = transform(images, seeds)
    chosen = torch.tensor(data.draw(st.permutations(range(40))))[: data.draw(st.integers(1, 40))]
    assert torch.equal(transform(images[chosen], seeds[chosen]), whole[chosen])


def test_groups_larger_than_a_chunk_are_computed_in_pieces(monkeypatch):
    images, seeds = noise(40), torch.arange(40)
    whole = DeviceAugment(ALL)(images, seeds)
    monkeypatch.setattr(device_augment, "_CHUNK", 3)
    assert torch.equal(DeviceAugment(ALL)(images, seeds), whole)


def test_other_seeds_give_other_pictures_and_the_input_stays():
    images = noise(1).expand(64, -1, -1, -1)
    before = images.clone()
    changed = DeviceAugment(ALL)(images, torch.arange(64))
    assert torch.equal(images, before)
    assert len({picture.numpy().tobytes() for picture in changed}) > 60


def test_nothing_to_do_gives_the_pictures_themselves():
    images = noise(3)
    assert DeviceAugment(AugmentConfig())(images, torch.arange(3)) is images
    jitter = JitterConfig(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    assert torch.equal(DeviceAugment(AugmentConfig(color_jitter=jitter))(images, torch.arange(3)), images)
    assert torch.equal(
        DeviceAugment(AugmentConfig(color_jitter=JitterConfig(probability=0.0)))(images, torch.arange(3)), images
    )


def test_jitter_draws_what_torchvision_draws():
    config = JitterConfig(probability=0.7, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    stages = drawn(AugmentConfig(color_jitter=config), 6000)
    numbers = np.stack([stage.number_B for stage in stages], axis=1)
    strengths = np.stack([stage.strength_B for stage in stages], axis=1)
    happens = (numbers >= 0).all(1)
    assert ((numbers >= 0).any(1) == happens).all()
    assert abs(happens.mean() - 0.7) < 0.025
    orders = Counter(map(tuple, numbers[happens]))
    assert len(orders) == 24
    assert max(orders.values()) < 2 * min(orders.values())
    theirs = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    for number, (low, high) in enumerate([theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue]):
        values = strengths[happens][numbers[happens] == number]
        assert len(values) == happens.sum()
        quantiles = np.quantile((values - low) / (high - low), [0, 0.25, 0.5, 0.75, 1])
        assert np.allclose(quantiles, [0, 0.25, 0.5, 0.75, 1], atol=0.03)
        assert values.min() >= low
        assert values.max() <= high


def test_grey_happens_with_its_probability():
    images = noise(1).expand(1000, -1, -1, -1)
    changed = DeviceAugment(AugmentConfig(grayscale=0.3))(images, torch.arange(1000))
    grey = (changed == changed[..., :1]).all(-1).flatten(1).all(1)
    assert torch.equal(changed[~grey], images[~grey])
    assert abs(grey.float().mean() - 0.3) < 0.06


def test_rand_augment_draws_each_operation_as_often_and_both_signs():
    stages = drawn(AugmentConfig(rand_augment=RandAugmentConfig(num_ops=2, magnitude=9)), 8000)
    assert len(stages) == 2
    for stage in stages:
        counts = Counter(zip(stage.number_B.tolist(), stage.strength_B.round(6).tolist(), strict=True))
        signed, unsigned = [count for count in counts.values() if count < 430], [c for c in counts.values() if c >= 430]
        assert (len(signed), len(unsigned)) == (2 * 9, 5)
        assert all(abs(count - 8000 / 28) < 5 * (8000 / 28) ** 0.5 for count in signed)
        assert all(abs(count - 8000 / 14) < 5 * (8000 / 14) ** 0.5 for count in unsigned)
    assert abs(np.corrcoef(stages[0].number_B, stages[1].number_B)[0, 1]) < 0.05


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_is_torchvisions_with_the_same_draws(magnitude):
    """Picture by picture, torchvision's own code, told the operations and signs that were drawn here."""
    augment = AugmentConfig(rand_augment=RandAugmentConfig(num_ops=1, magnitude=magnitude))
    images = noise(120, size=20)
    ours = DeviceAugment(augment)(images, torch.arange(120))
    theirs = v2.RandAugment(num_ops=1, magnitude=magnitude)
    results = [
        torch.stack([forced(theirs, image, name, sign, magnitude) for image in images])
        for name in theirs._AUGMENTATION_SPACE
        for sign in (1, -1)
    ]
    near = torch.stack([(ours.int() - result.int()).abs().flatten(1).amax(1) <= 1 for result in results])
    assert near.any(0).all()
    assert magnitude == 0 or (near.sum(1) > 0).sum() >= 20  # of 23 that differ


def forced(augment, image, name, sign, magnitude):
    magnitudes, signed = augment._AUGMENTATION_SPACE[name]
    levels = magnitudes(31, *image.shape[:2])
    level = 0.0 if levels is None else float(levels[magnitude]) * (sign if signed else 1)
    changed = augment._apply_image_or_video_transform(
        image.permute(2, 0, 1), name, level, interpolation=augment.interpolation, fill=augment._fill
    )
    return changed.permute(1, 2, 0)


@pytest.mark.gpu
def test_cuda_gives_the_same_pixels_without_waiting():
    images, seeds = noise(40), torch.arange(40)
    transform = DeviceAugment(ALL)
    expected = transform(images, seeds)
    on_device = images.cuda()
    transform(on_device, seeds)  # the maps are moved once
    torch.cuda.set_sync_debug_mode("error")
    try:
        changed = transform(on_device, seeds)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(changed.cpu(), expected)
