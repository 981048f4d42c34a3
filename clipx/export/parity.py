"""Compares an exported model with the trained one on the same images and texts, including preprocessing.

Shapes: B images, N texts, S image size, D embedding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipx.pretrained import Pretrained

LIMIT = 1e-4
"""The largest difference, of an element of an embedding or of a logit, that counts as rounding."""

TEXTS = (
    "a photo of a cat",
    "Two dogs & one bird's nest, 1997!",
    "ein großes Café in Zürich — 東京タワー 🗼",
    "x",
    "a long caption that no context holds " * 60,
)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of one library for the images and texts; embeddings have unit length."""

    pixels_B3SS: Tensor
    tokens: list[list[int]]
    """The token ids of each text, up to its end token."""
    image_BD: Tensor
    text_ND: Tensor
    logits_BN: Tensor


def parity_images(image_size: int) -> list[Image.Image]:
    """Images with low and high frequencies: square, wide, high, grey, larger and smaller than the model's size.

    Their sizes are chosen so that transformers and open_clip crop the same square: for one size in four they do not
    (see `clipx.data.transforms.EvalTransform`).
    """
    third = image_size // 3
    sizes = ((image_size, image_size), (2 * image_size, 2 * image_size + 4 * third), (image_size + 5, image_size))
    small = max(image_size // 2, 1)
    images = [_image(width, height, seed) for seed, (width, height) in enumerate((*sizes, (small, small)))]
    return [*images, images[1].transpose(Image.Transpose.ROTATE_90), images[0].convert("L").convert("RGB")]


def our_outputs(pretrained: Pretrained, images: Sequence[Image.Image], texts: Sequence[str]) -> Outputs:
    """The outputs of the trained model."""
    images_BHWC = torch.stack([pretrained.preprocess(image) for image in images])
    tokens_T, lengths_B = pretrained.tokenize(texts)
    image_BD, text_ND = pretrained.encode_image(images_BHWC), pretrained.encode_text(texts)
    return Outputs(
        pixels_B3SS=pretrained.model.image_tower.normalize(images_BHWC).permute(0, 3, 1, 2),
        tokens=[row.tolist() for row in tokens_T.split(lengths_B.tolist())],
        image_BD=image_BD,
        text_ND=text_ND,
        logits_BN=_logits(pretrained, image_BD, text_ND),
    )


def differences(ours: Outputs, theirs: Outputs) -> dict[str, float]:
    """The largest absolute difference of each output, and the number of texts with different token ids."""
    return {
        "pixels": _largest(ours.pixels_B3SS, theirs.pixels_B3SS),
        "texts_with_other_token_ids": sum(a != b for a, b in zip(ours.tokens, theirs.tokens, strict=True)),
        "image_embeddings": _largest(ours.image_BD, theirs.image_BD),
        "text_embeddings": _largest(ours.text_ND, theirs.text_ND),
        "logits": _largest(ours.logits_BN, theirs.logits_BN),
    }


def above_limit(measured: dict[str, float]) -> list[str]:
    """The entries of `differences` that are more than rounding, NaN included."""
    return [
        f"{name} by {value:.3g}"
        for name, value in measured.items()
        if not value <= (0 if name == "texts_with_other_token_ids" else LIMIT)
    ]


def _logits(pretrained: Pretrained, image_BD: Tensor, text_ND: Tensor) -> Tensor:
    logits_BN = pretrained.logit_scale * image_BD @ text_ND.T
    bias = pretrained.model.logit_bias
    return logits_BN if bias is None else logits_BN + bias.detach()


def _largest(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    return (ours.double() - theirs.double()).abs().max().item()


def _image(width: int, height: int, seed: int) -> Image.Image:
    """Waves in each channel plus noise: low and high frequencies, on which resampling methods differ."""
    generator = np.random.default_rng(seed)
    y_H1, x_1W = np.mgrid[0:height, 0:1][0] / height, np.mgrid[0:1, 0:width][1] / width
    waves = [np.sin(2 * math.pi * ((k + 1) * x_1W + (seed + 1) * y_H1) + k) for k in range(3)]
    noise_HW3 = generator.normal(scale=20, size=(height, width, 3))
    return Image.fromarray((127 + 90 * np.stack(waves, axis=-1) + noise_HW3).clip(0, 255).astype(np.uint8))
