"""Who loads an export, and what it computes from it.

Shapes: B images, N texts, S image size, D embedding, P tokens of an image, C channels of a tower.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image
from torch import Tensor

LIMIT = 1e-4
"""The largest difference, of an element of an embedding or of a logit, that counts as rounding."""
BATCH = 32
"""Pictures or texts of one forward pass."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a consumer computes for pictures and texts, in their order; None where it has none of it."""

    pixels_B3SS: Tensor | None = None
    """The preprocessed pictures, normalised."""
    tokens: list[list[int]] | None = None
    """The token ids of each text, up to its end token."""
    image_BD: Tensor | None = None
    """Of unit length, as the texts'."""
    text_ND: Tensor | None = None
    logits_BN: Tensor | None = None
    hidden_BPC: Tensor | None = None
    """The last but one hidden state of the image tower; maybe of the first pictures alone."""
    scores_BN: Tensor | None = None
    """The share of each text in a picture's softmax over all texts, or its sigmoid in a model with a bias."""


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """Somebody who loads an export: a row of parity.json."""

    name: str
    """As in "transformers CLIPModel"."""
    library: Callable[[], str | None]
    """Name and version of the library; None if it is not installed."""
    applies: Callable[[Path], bool]
    """Whether a folder has what it loads."""
    outputs: Callable[[Path, Sequence[Image.Image], Sequence[str]], Outputs]
    """Computes from the folder's files alone. Pictures may be large, and are decoded as they are asked for."""
    limit: float | None = LIMIT
    """The largest difference that counts as rounding; None: differences are told, and end no export."""
    crop: Literal["round", "floor"] = "round"
    """Where its preprocessing puts the corner of the centre square if half a pixel is left; needs no square: either."""
    notes: tuple[str, ...] = ()
    """For those who use it."""


def library_version(distribution: str, module: str) -> str | None:
    """Name and version of an installed library; None without it."""
    try:
        return f"{distribution} {version(distribution)}" if find_spec(module) else None
    except (PackageNotFoundError, ValueError):  # ValueError: a module that a test took away
        return None


def batches(items: Sequence[_Item], size: int = BATCH) -> Iterator[list[_Item]]:
    """Consecutive items, `size` at a time."""
    for start in range(0, len(items), size):
        yield [items[i] for i in range(start, min(start + size, len(items)))]
