"""Pictures that cost a decoder and a resize what photographs cost, and shards of them.

A photograph's spectrum falls with the frequency, and its phases make edges: here 1/f fields, cut by a dozen shapes of
other brightness, with a little of a sensor's noise. Contrast and fall are set so that JPEGs of quality 90 and 4:2:0
have the bits of real ones: 2.5 a pixel at 192 pixels, as 400 textbook photographs have in the median (2.46; a tenth
below 1.6, a tenth above 3.5). Larger ones then take 2.6 bits at 256 x 256, 2.0 at 512 x 512 and 1.4 at 1500 x 1000.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from workload import captions

_FALL_OF_LIGHT, _FALL_OF_COLOUR = 1.4, 1.6
_LIGHT, _COLOUR, _NOISE = 36.0, 12.0, 1.0
_NUM_SHAPES = 12
_SAMPLES_PER_SHARD = 64


def natural_picture(seed: int, *, width: int, height: int) -> Image.Image:
    """An RGB picture, another for every seed."""
    draw = np.random.default_rng(seed)
    light = _with_edges(_field(draw, width, height, _FALL_OF_LIGHT), draw)
    red, blue = (_COLOUR * _field(draw, width, height, _FALL_OF_COLOUR) for _ in range(2))
    light = 120 + _LIGHT * light / light.std() + draw.normal(0, _NOISE, light.shape)
    pixels = np.stack([light + red, light - 0.45 * (red + blue), light + blue], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, *, quality: int = 90) -> bytes:
    """The picture as most tools save it, 4:2:0."""
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


def write_shards(folder: Path, pictures: list[bytes], *, count: int) -> list[str]:
    """Shards of `count` samples, which repeat the pictures with captions of their own; at least two."""
    texts = captions(count, seed=0)
    size = min(_SAMPLES_PER_SHARD, -(-count // 2))
    paths = []
    for shard, first in enumerate(range(0, count, size)):
        paths.append(str(folder / f"{shard:05d}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(first, min(first + size, count)):
                _add(tar, f"{number:06d}.jpg", pictures[number % len(pictures)])
                _add(tar, f"{number:06d}.txt", texts[number].encode())
    return paths


def _field(draw: np.random.Generator, width: int, height: int, fall: float) -> np.ndarray:
    """Random phases under a spectrum of frequency to the power of -`fall`; mean 0, deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    waves = draw.standard_normal(frequency.shape) + 1j * draw.standard_normal(frequency.shape)
    field = np.fft.irfft2(waves / frequency**fall, (height, width))
    return field / field.std()


def _with_edges(field: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    height, width = field.shape
    rows, columns = np.mgrid[:height, :width]
    for number in range(_NUM_SHAPES):
        row, column, turn = draw.uniform(0, height), draw.uniform(0, width), draw.uniform(0, np.pi)
        along = ((columns - column) * np.cos(turn) + (rows - row) * np.sin(turn)) / draw.uniform(0.05, 0.3) / width
        across = ((rows - row) * np.cos(turn) - (columns - column) * np.sin(turn)) / draw.uniform(0.05, 0.3) / height
        inside = along**2 + across**2 < 1 if number % 2 else np.maximum(abs(along), abs(across)) < 1
        field = np.where(inside, 0.7 * field + draw.normal(), field)
    return field


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
