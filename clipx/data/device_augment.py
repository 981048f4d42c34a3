"""Colours and RandAugment on whole batches, on the device; torchvision's v2 computes one image at a time.

The operations of an image are drawn on the host from its seed alone. Images that share an operation are computed
together, so that a batch of any size takes a few hundred kernels, and nothing waits for the device.
Shapes: B images, H x W pixels, C = 3 channels.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipx import counter_random
from clipx.config.data import AugmentConfig, JitterConfig, RandAugmentConfig
from clipx.data import pixel_operations as ops

_Operation = Callable[[Tensor, Tensor], Tensor]

_CHUNK = 128  # images computed at once: at 224 pixels 77 MB for each float32 copy of them
_PURPOSE = -1  # first key of these draws; the crop draws from the same seeds with keys from 0 on
_JITTER, _GRAYSCALE, _RAND_AUGMENT = range(3)  # second key

_OPERATIONS: dict[str, _Operation] = {
    "brightness": ops.brightness,
    "contrast": ops.contrast,
    "saturation": ops.saturation,
    "hue": ops.hue,
    "grayscale": ops.grayscale,
    "sharpness": ops.sharpness,
    "posterize": ops.posterize,
    "solarize": ops.solarize,
    "autocontrast": ops.autocontrast,
    "equalize": ops.equalize,
}
_WARP = len(_OPERATIONS)  # its number; it needs maps
_NOTHING = -1
_NUMBER = {name: number for number, name in enumerate(_OPERATIONS)}
_SIGNED = ("brightness", "saturation", "contrast", "sharpness")  # of RandAugment, in its order
_UNSIGNED = ("posterize", "solarize", "autocontrast", "equalize")


class _AugmentStep(NamedTuple):
    """At most one operation for each image."""

    number_B: np.ndarray
    """int64, which operation."""
    strength_B: np.ndarray
    """float64."""


class DeviceAugment:
    """Colour jitter, loss of colour, then RandAugment: for each image a pure function of it and its seed.

    The distribution is that of torchvision's v2 ColorJitter (applied with a probability), RandomGrayscale and
    RandAugment.
    """

    def __init__(self, augment: AugmentConfig) -> None:
        self._augment = augment
        self._maps: dict[tuple[int, int, torch.device], Tensor] = {}

    def __call__(self, images_BHWC: Tensor, seed_B: Tensor) -> Tensor:
        """The augmented images, a new tensor, of uint8 images and int64 seeds on the host."""
        steps = list(self._steps(counter_random.fold(seed_B.numpy(), _PURPOSE)))
        if not steps:
            return images_BHWC
        order_SB = np.stack([np.argsort(step.number_B, kind="stable") for step in steps])
        strength_SB = np.stack([step.strength_B[order] for step, order in zip(steps, order_SB, strict=True)])
        rows_SB = _to_device(order_SB, images_BHWC.device)
        strengths_SB = _to_device(strength_SB.astype(np.float32), images_BHWC.device)
        images_BHWC = images_BHWC.clone()
        for step, rows_B, strengths_B in zip(steps, rows_SB, strengths_SB, strict=True):
            for number, part in _groups(step.number_B):
                rows = rows_B[part]
                changed = self._operation(number, images_BHWC)(images_BHWC[rows], strengths_B[part].view(-1, 1, 1, 1))
                images_BHWC.index_copy_(0, rows, changed)
        return images_BHWC

    def _steps(self, bits_B: np.ndarray) -> Iterator[_AugmentStep]:
        augment = self._augment
        if augment.color_jitter is not None:
            yield from _jitter(augment.color_jitter, counter_random.fold(bits_B, _JITTER))
        if augment.grayscale > 0:
            drawn_B = counter_random.uniform(counter_random.fold(bits_B, _GRAYSCALE))
            number_B = np.where(drawn_B < augment.grayscale, _NUMBER["grayscale"], _NOTHING)
            yield _AugmentStep(number_B, np.zeros(len(bits_B)))
        if augment.rand_augment is not None:
            yield from _rand_augment(augment.rand_augment, counter_random.fold(bits_B, _RAND_AUGMENT))

    def _operation(self, number: int, images_BHWC: Tensor) -> _Operation:
        if number != _WARP:
            return list(_OPERATIONS.values())[number]
        assert self._augment.rand_augment is not None
        _, height, width, _ = images_BHWC.shape
        key = (height, width, images_BHWC.device)
        if key not in self._maps:
            self._maps[key] = ops.warp_maps(height, width, self._augment.rand_augment.magnitude).to(key[2])
        return partial(ops.warp, maps_MP=self._maps[key])


def _jitter(config: JitterConfig, bits_B: np.ndarray) -> Iterator[_AugmentStep]:
    """Four steps: every image that is changed has the four operations in its own order."""
    drawn_BK = counter_random.uniform(counter_random.fold(bits_B[:, None], np.arange(5)))
    changed_B = drawn_BK[:, 4] < config.probability
    spreads_K = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    low_K = np.array([*np.maximum(0, 1 - spreads_K[:3]), -config.hue])
    high_K = np.array([*(1 + spreads_K[:3]), config.hue])
    strength_BK = low_K + (high_K - low_K) * drawn_BK[:, :4]
    number_K = np.array([_NUMBER[name] for name in ("brightness", "contrast", "saturation", "hue")])
    for place_B in counter_random.permutation(counter_random.fold(bits_B, 5), 4).T:
        happens_B = changed_B & (spreads_K[place_B] > 0)
        strength_B = np.take_along_axis(strength_BK, place_B[:, None], axis=1)[:, 0]
        yield _AugmentStep(np.where(happens_B, number_K[place_B], _NOTHING), strength_B)


def _rand_augment(config: RandAugmentConfig, bits_B: np.ndarray) -> Iterator[_AugmentStep]:
    """A step for each of an image's operations, drawn from torchvision's fourteen, half of them negative."""
    table = _rand_augment_table(config.magnitude)
    number_T2, strength_T2 = (np.array(column) for column in zip(*table, strict=True))
    for place in range(config.num_ops):
        drawn_B2 = counter_random.uniform(counter_random.fold(bits_B[:, None], 2 * place + np.arange(2)))
        entry_B = (drawn_B2[:, 0] * len(table)).astype(np.int64)
        sign_B = (drawn_B2[:, 1] < 0.5).astype(np.int64)
        yield _AugmentStep(number_T2[entry_B], strength_T2[entry_B, sign_B])


def _rand_augment_table(magnitude: int) -> list[tuple[int, tuple[float, float]]]:
    """The entries of RandAugment's list: an operation, its positive and its negative strength."""
    bits = 8 - round(magnitude / (30 / 4))
    unsigned = (float(0xFF << (8 - bits) & 0xFF), 255.0 * ops.strength(1.0, 0.0, magnitude), 0.0, 0.0)
    factor = ops.strength(0.0, 0.9, magnitude)
    return [
        (_NOTHING, (0.0, 0.0)),
        *((_WARP, (float(warp), float(warp + len(ops.WARPS)))) for warp in range(len(ops.WARPS))),
        *((_NUMBER[name], (1.0 + factor, 1.0 - factor)) for name in _SIGNED),
        *((_NUMBER[name], (value, value)) for name, value in zip(_UNSIGNED, unsigned, strict=True)),
    ]


def _groups(number_B: np.ndarray) -> Iterator[tuple[int, slice]]:
    """(operation, rows) of at most `_CHUNK` images that share it, among images sorted by operation."""
    numbers, counts = np.unique(number_B, return_counts=True)
    for number, count, end in zip(numbers.tolist(), counts.tolist(), counts.cumsum().tolist(), strict=True):
        if number != _NOTHING:
            for first in range(end - count, end, _CHUNK):
                yield number, slice(first, min(first + _CHUNK, end))


def _to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy that the host does not wait for."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
