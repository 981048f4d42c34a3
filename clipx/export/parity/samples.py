"""The pictures and texts on which an export is compared: drawn and written here, or given by a person.

No size is chosen so that all consumers crop alike, and no text is cleaned first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

TEXTS = (
    "a photo of a cat",
    "Two dogs & one bird's nest, 1997!",
    "ein großes Café in Zürich — 東京タワー 🗼",
    "x",
    "  white   space,\n\ta second line\u2028and a third  ",
    "\u201ccurly quotes\u201d, the photographer\u2019s own",
    "fish &amp; chips &lt;b&gt;for&lt;/b&gt; &quot;two&quot;&nbsp;&#39;now&#39;",
    "the cafÃ© where itâ€™s always full",
    "an e\u0301clair \ufb01lled with \uff23\uff32\uff25\uff21\uff2d, 20\u00a0\u00b5m",
    "👩🏽‍🚀 waves 👋 on the 🌕",
    "a long caption that no context holds " * 60,
)


@dataclass(frozen=True)
class Samples:
    """What an export is compared on."""

    pictures: Sequence[Image.Image]
    """May decode as they are asked for."""
    sizes: list[tuple[int, int]]
    """Width and height of each picture."""
    texts: list[str]
    origin: str
    """Where they come from, for parity.json."""


def drawn_samples(image_size: int) -> Samples:
    """Pictures of the sizes that photographs have, and short, long and odd texts."""
    pictures = _pictures(image_size)
    return Samples(pictures, [picture.size for picture in pictures], list(TEXTS), "drawn by clipx")


def _pictures(image_size: int) -> list[Image.Image]:
    """Low and high frequencies: square, wide, high, grey, larger and smaller than the model's size.

    The long sides are four in a row, so that every rest of the crop by 4 comes, 3 included.
    """
    s = image_size
    sizes = [(s, s), (max(s // 2, 1),) * 2, (s + 5, s), (4 * s, 3 * s), (2 * s, 3 * s)]
    sizes += [(s + s // 2 + rest, s) for rest in range(4)]
    pictures = [_waves(width, height, seed) for seed, (width, height) in enumerate(sizes)]
    return [*pictures, pictures[-1].transpose(Image.Transpose.ROTATE_90), pictures[0].convert("L").convert("RGB")]


def _waves(width: int, height: int, seed: int) -> Image.Image:
    """Waves in each channel plus noise: low and high frequencies, on which resampling methods differ."""
    generator = np.random.default_rng(seed)
    y_H1, x_1W = np.mgrid[0:height, 0:1][0] / height, np.mgrid[0:1, 0:width][1] / width
    waves = [np.sin(2 * math.pi * ((k + 1) * x_1W + (seed + 1) * y_H1) + k) for k in range(3)]
    noise_HW3 = generator.normal(scale=20, size=(height, width, 3))
    return Image.fromarray((127 + 90 * np.stack(waves, axis=-1) + noise_HW3).clip(0, 255).astype(np.uint8))
