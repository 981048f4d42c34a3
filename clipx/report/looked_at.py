"""Pictures of an evaluation set as the newest checkpoint sees them: a part of the set, spread evenly over it.

Shapes: N pictures, C classes, P captions, D embedding.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from clipx.data.decode import UndecodableError
from clipx.data.labelled import AnySet, CaptionedImage, EncodedImage
from clipx.errors import InputError
from clipx.pretrained import Pretrained

_BATCH = 64
_THREADS = 4  # Pillow decodes without holding the interpreter's lock

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class LookedAt:
    """Some pictures of a set, embedded."""

    name: str
    dataset: AnySet
    images: list[EncodedImage]
    """As the set has them, with label, labels or captions; those that cannot be decoded are left out."""
    image_ND: Tensor
    """float32, unit length, on the CPU."""
    num_pictures: int
    """Of the whole set."""
    num_captions: int
    """Of the whole set; equal ones count once."""
    num_undecodable: int
    """Of those that were looked at."""

    def how_many(self) -> str:
        """What part of the set this is, for a person."""
        total, here = self.num_pictures, len(self.images)
        part = f"all {total:,} pictures" if here == total else f"{here:,} of {total:,} pictures, spread evenly"
        return part + (f"; {self.num_undecodable:,} could not be decoded" if self.num_undecodable else "")


def look(pretrained: Pretrained, dataset: AnySet, *, name: str, most: int) -> LookedAt:
    """Embeds at most `most` pictures of a set, in the set's order.

    Raises:
        InputError: the set breaks its layout, or none of its pictures can be decoded.
    """
    counted = _Counted()
    chosen = spread(counted.passed(dataset.images()), most)
    good: list[EncodedImage] = []
    rows: list[Tensor] = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(chosen), _BATCH):
            images = chosen[start : start + _BATCH]
            pixels = list(threads.map(lambda image: _pixels(pretrained, image), images))
            there = [(image, square) for image, square in zip(images, pixels, strict=True) if square is not None]
            if there:
                good += [image for image, _ in there]
                rows.append(pretrained.encode_image(torch.stack([square for _, square in there])).float().cpu())
    if not rows:
        raise InputError(f"{name}: none of the pictures that were looked at can be decoded")
    return LookedAt(
        name=name,
        dataset=dataset,
        images=good,
        image_ND=torch.cat(rows),
        num_pictures=counted.pictures,
        num_captions=len(counted.captions),
        num_undecodable=len(chosen) - len(good),
    )


def spread(items: Iterable[Item], most: int) -> list[Item]:
    """At most `most` of the items, each as far from the next: every 1st, 2nd, 4th, ... so that one pass is enough.

    More than half of `most` come, if there are as many.
    """
    kept: list[Item] = []
    stride = 1
    for number, item in enumerate(items):
        if number % stride:
            continue
        kept.append(item)
        if len(kept) > most:
            kept = kept[::2]
            stride *= 2
    return kept


def evenly(items: list[Item], count: int) -> list[Item]:
    """`count` of the items, from the first to the last; all if they are fewer."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


class _Counted:
    """Counts what passes."""

    def __init__(self) -> None:
        self.pictures = 0
        self.captions: set[int] = set()  # hashes: the texts of a large set would take its size in memory

    def passed(self, images: Iterable[EncodedImage]) -> Iterator[EncodedImage]:
        for image in images:
            self.pictures += 1
            if isinstance(image, CaptionedImage):
                self.captions.update(map(hash, image.captions))
            yield image


def texts_of(images: Iterable[EncodedImage]) -> list[str]:
    """The distinct captions of pictures, in their order."""
    captions = (image.captions for image in images if isinstance(image, CaptionedImage))
    return list(dict.fromkeys(chain.from_iterable(captions)))


def _pixels(pretrained: Pretrained, image: EncodedImage) -> Tensor | None:
    try:
        return pretrained.pixels(image.data)
    except UndecodableError:
        return None
