import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import picture
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from clipx.data import pixel_operations as ops

FACTORS = (0.0, 0.1, 0.73, 1.0, 1.27, 1.9)
TORCHVISION = {
    "brightness": (tv.adjust_brightness, FACTORS),
    "contrast": (tv.adjust_contrast, FACTORS),
    "saturation": (tv.adjust_saturation, FACTORS),
    "hue": (tv.adjust_hue, (-0.5, -0.1, 0.0, 0.03, 0.25, 0.5)),
    "sharpness": (tv.adjust_sharpness, FACTORS),
    "grayscale": (lambda image, _: tv.rgb_to_grayscale(image, 3), (0.0,) * 6),
    "posterize": (lambda image, mask: tv.posterize(image, bin(int(mask)).count("1")), (0, 0x80, 0xE0, 0xFC, 0xFE, 255)),
    "solarize": (tv.solarize, (0.0, 10.0, 128.0, 178.5, 254.9, 255.0)),
    "autocontrast": (lambda image, _: tv.autocontrast(image), (0.0,) * 6),
    "equalize": (lambda image, _: tv.equalize(image), (0.0,) * 6),
}
EXACT = ("posterize", "solarize", "autocontrast", "equalize")


def kinds():
    """Noise, smooth colours, one colour, grey, dark and light."""
    noise = np.array(picture(0, (40, 32)))
    smooth = np.array(picture(1, (5, 4)).resize((40, 32), Image.Resampling.BICUBIC))
    grey = noise[..., :1].repeat(3, -1)
    images = [noise, smooth, np.full_like(noise, (7, 200, 90)), grey, noise // 8, 255 - smooth // 4]
    return torch.from_numpy(np.stack(images))


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("shift", range(6))
def test_every_picture_is_torchvisions(name, shift):
    theirs, strengths = TORCHVISION[name]
    strengths = strengths[shift:] + strengths[:shift]
    images = kinds()
    changed = getattr(ops, name)(images, torch.tensor(strengths, dtype=torch.float32).view(-1, 1, 1, 1))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    for image, strength, ours in zip(images, strengths, changed, strict=True):
        expected = theirs(image.permute(2, 0, 1), strength).permute(1, 2, 0)
        assert (ours.int() - expected.int()).abs().max() <= (0 if name in EXACT else 1)
        assert (ours != expected).float().mean() < 0.03


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 1)])
def test_a_picture_that_is_all_border_cannot_be_sharpened(size):
    images = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8)
    assert torch.equal(ops.sharpness(images, torch.full((1, 1, 1, 1), 1.9)), images)


@pytest.mark.parametrize(("height", "width", "step"), [(32, 40, 9), (40, 32, 30), (31, 31, 0)])
def test_warps_are_torchvisions(height, width, step):
    images = torch.randint(0, 256, (10, height, width, 3), dtype=torch.uint8)
    maps = ops.warp_maps(height, width, step)
    warped = ops.warp(images, torch.arange(10.0).view(-1, 1, 1, 1), maps)
    augment = v2.RandAugment()
    names = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    for number, (image, ours) in enumerate(zip(images, warped, strict=True)):
        name = names[number % 5]
        largest = float(augment._AUGMENTATION_SPACE[name][0](31, height, width)[step])
        expected = augment._apply_image_or_video_transform(
            image.permute(2, 0, 1),
            name,
            largest if number < 5 else -largest,
            interpolation=augment.interpolation,
            fill=augment._fill,
        )
        assert torch.equal(ours, expected.permute(1, 2, 0))
    assert torch.equal(warped, images) == (step == 0)
