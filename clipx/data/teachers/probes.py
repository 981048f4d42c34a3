"""Says whether this code augments pictures as the code that taught: both have augmented the same few pictures.

What is compared are pixels, as they alone tell that two programs draw, crop, resize and colour alike. Kinds of CPU and
versions of libraries may round otherwise, which a small share of small differences allows for; on one machine with one
environment equal code gives equal bits.
"""

import base64
import io
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipx import counter_random
from clipx.config.data import AugmentConfig, Decode, device_part
from clipx.counter_random import Stream
from clipx.data.device_augment import DeviceAugment
from clipx.data.teachers.views import view_seed
from clipx.data.transforms import TrainTransform

_SIZE = 16
_VIEWS = 3
_PICTURES = (("png", 40, 56), ("png", 64, 48), ("jpeg", 80, 96))  # format, height, width
_CELL = 4  # pixels of one colour: noise of single pixels would be grey after resizing
_ROUNDING, _SHARE = 2, 0.02  # of 255, and of the numbers


def probed(augment: AugmentConfig, *, decode: Decode, seed: int) -> NDArray[np.uint8]:
    """Three views of each of three pictures, uint8 (9, 16, 16, 3).

    Args:
        augment: a source's.
        decode: see `data.decode`.
        seed: the store's.

    Raises:
        InputError: "scaled" without simplejpeg.
    """
    transform = TrainTransform(_SIZE, augment, decode=decode)
    images_BSSC = torch.empty((len(_PICTURES) * _VIEWS, _SIZE, _SIZE, 3), dtype=torch.uint8)
    seeds = [
        view_seed(seed, view, shard="probe", key=str(number))
        for number in range(len(_PICTURES))
        for view in range(_VIEWS)
    ]
    for row, (one_seed, out_SSC) in enumerate(zip(seeds, images_BSSC, strict=True)):
        transform(_picture(row // _VIEWS), seed=one_seed, out=out_SSC)
    if any(device_part(augment)):
        images_BSSC = DeviceAugment(augment)(images_BSSC, torch.tensor(seeds))
    return images_BSSC.numpy()


def encoded_probes(augment: AugmentConfig, *, decode: Decode, seed: int) -> str:
    """The pixels of `probed` as text, for a store's description."""
    return base64.b64encode(zlib.compress(probed(augment, decode=decode, seed=seed).tobytes())).decode()


def agrees(probes: str, augment: AugmentConfig, *, decode: Decode, seed: int) -> bool:
    """Whether what was probed when the store was made is, but for rounding, what this code makes."""
    now = probed(augment, decode=decode, seed=seed)
    try:
        then = np.frombuffer(zlib.decompress(base64.b64decode(probes)), np.uint8)
    except (ValueError, zlib.error):
        return False
    if then.size != now.size:
        return False
    differences = np.abs(then.astype(np.int16) - now.reshape(-1).astype(np.int16))
    return bool((differences > _ROUNDING).mean() <= _SHARE)


def _picture(number: int) -> bytes:
    """A picture of coloured cells, encoded."""
    format, height, width = _PICTURES[number]
    cells = np.arange(height // _CELL * (width // _CELL) * 3, dtype=np.int64)
    colours = counter_random.uniform(counter_random.fold(counter_random.start(number, Stream.TAUGHT_VIEW), cells)) * 256
    pixels_HWC = colours.astype(np.uint8).reshape(height // _CELL, width // _CELL, 3)
    whole_HWC = pixels_HWC.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(whole_HWC).save(buffer, format, **({"quality": 95, "subsampling": 0} if format == "jpeg" else {}))
    return buffer.getvalue()
