"""Pictures to uint8 squares: the training augmentation and the evaluation preprocessing; owns torchvision.

Both stop at uint8, a quarter of float32's bytes on the way to the device: the image tower normalises there.
Shapes: S image size.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from clipx.config.data import AugmentConfig


class TrainTransform:
    """Random resized crop and flip, a pure function of picture and seed.

    Args:
        image_size: S, pixels of the square result.
        augment: area and aspect ratio of the crop, probability of the flip.
    """

    def __init__(self, image_size: int, augment: AugmentConfig) -> None:
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(
                    image_size,
                    scale=augment.crop_scale,
                    ratio=augment.crop_ratio,
                    interpolation=v2.InterpolationMode.BICUBIC,
                    antialias=True,
                ),
                v2.RandomHorizontalFlip(augment.flip),
            ]
        )

    def __call__(self, image: Image.Image, *, seed: int) -> Tensor:
        """The augmented picture, uint8 (S, S, 3).

        Args:
            image: RGB.
            seed: decides the crop and the flip; non-negative, below 2^63.
        """
        # torchvision draws from the global generator and takes no other, so it is lent the seed and given back.
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            return _to_tensor(self._transform(image))
        finally:
            generator.set_state(state)


class EvalTransform:
    """Short side to S, bicubic, then the centre square: OpenAI's and open_clip's preprocessing, on Pillow.

    transformers' CLIPImageProcessor (backend "pil") gives the same pixels but for one case: where the resized picture
    is 4n + 3 pixels longer than S, torchvision rounds the half margin up and transformers down, one pixel apart.

    Args:
        image_size: S, pixels of the square result.
    """

    def __init__(self, image_size: int) -> None:
        self._transform = v2.Compose(
            [
                v2.Resize(image_size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.CenterCrop(image_size),
            ]
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """The preprocessed picture, uint8 (S, S, 3); `image` of any mode is taken as RGB."""
        return _to_tensor(self._transform(image.convert("RGB")))


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))
