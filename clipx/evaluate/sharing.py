"""Divides an evaluation, its forward passes included, among all ranks.

Blocks of `batch_size` consecutive items are embedded together, block i by rank i mod W. Each block is a batch of its
own, so its bits do not depend on the number of ranks. Sharded models need all ranks in every forward pass, so all ranks
do the same number of passes: a rank without items left embeds a filler and drops the result.

Shapes: B items of this rank's block, N items of all blocks of a round, D embedding.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.decode import UndecodableError
from clipx.data.labelled import EncodedImage
from clipx.distributed.collectives import all_gather, gather_objects, raise_on_all_ranks, rank, world_size
from clipx.errors import InputError
from clipx.pretrained import Pretrained

Item = TypeVar("Item")
ImageT = TypeVar("ImageT", bound=EncodedImage)

_DECODERS = 4  # threads; Pillow decodes and resizes without holding the interpreter's lock


@dataclass(frozen=True, kw_only=True)
class Round(Generic[Item]):
    """A block of items for each rank; those of the last ranks may be short or empty in the last round."""

    local: list[Item]
    """This rank's block."""
    start: int
    """The number of the block's first item."""
    count: int
    """N, the items of all ranks."""


def share(items: Iterable[Item], *, batch_size: int, group: ProcessGroup | None) -> Iterator[Round[Item]]:
    """Yields this rank's blocks of `batch_size` items: as many rounds on every rank.

    Every rank iterates over all items, so no rank needs to know their number. After reading a round, and before the
    caller embeds it, the ranks exchange errors.

    Raises:
        InputError: any rank failed to read; raised on all ranks.
    """
    before, first = 0, rank(group) * batch_size
    remaining = iter(items)
    while True:
        local: list[Item] = []
        count = 0
        with raise_on_all_ranks(group):
            for count, item in enumerate(islice(remaining, world_size(group) * batch_size), 1):
                if first < count <= first + batch_size:
                    local.append(item)
        if count == 0:
            return
        yield Round(local=local, start=before + first, count=count)
        before += count


def embed_images(
    pretrained: Pretrained, images: Iterable[ImageT], *, batch_size: int, group: ProcessGroup | None
) -> Iterator[tuple[list[ImageT], Tensor]]:
    """Yields this rank's images, batch by batch, with their embeddings, float32 (B, D).

    Raises:
        InputError: the case of `embed_image_rounds`.
    """
    for block, image_BD in embed_image_rounds(pretrained, images, batch_size=batch_size, group=group):
        yield block.local, image_BD


def embed_image_rounds(
    pretrained: Pretrained,
    images: Iterable[ImageT],
    *,
    batch_size: int,
    group: ProcessGroup | None,
    decode: Literal["pil", "fast"] = "pil",
) -> Iterator[tuple[Round[ImageT], Tensor]]:
    """Yields this rank's images, round by round, with their embeddings, float32 (B, D).

    Raises:
        InputError: after the last round, on all ranks, if any rank cannot decode an image. Metrics of an incomplete set
            could not be compared.
    """
    size = pretrained.config.image.image_size
    blank = torch.zeros(size, size, 3, dtype=torch.uint8)
    broken: list[str] = []

    def pixels(image: ImageT) -> Tensor:
        try:
            return pretrained.pixels(image.data, decode=decode)
        except UndecodableError as error:
            broken.append(f"{image.name}: {error}")
            return blank

    with ThreadPoolExecutor(_DECODERS) as threads:
        for block in share(images, batch_size=batch_size, group=group):
            images_BHWC = torch.stack(list(threads.map(pixels, block.local)) or [blank])
            yield block, pretrained.encode_image(images_BHWC)[: len(block.local)].float()
    if all_broken := [message for messages in gather_objects(broken, group) for message in messages]:
        raise InputError(f"{len(all_broken)} pictures of the evaluation set cannot be decoded; {all_broken[0]}")


def embed_texts(
    pretrained: Pretrained, texts: Iterable[str], *, batch_size: int, group: ProcessGroup | None
) -> Iterator[tuple[Round[str], Tensor]]:
    """Yields this rank's texts, round by round, with their embeddings, float32 (B, D)."""
    for block in share(texts, batch_size=batch_size, group=group):
        yield block, pretrained.encode_text(block.local or ["a"])[: len(block.local)].float()


def gather_round(local_BD: Tensor, count: int, *, batch_size: int, group: ProcessGroup | None) -> Tensor:
    """Gathers the blocks of a round: row i is that of the round's item i.

    Returns:
        (N, D), the same on all ranks; one all-gather.
    """
    if group is None:
        return local_BD
    padded = local_BD.new_zeros(batch_size, local_BD.shape[1])
    padded[: len(local_BD)] = local_BD
    return all_gather(padded, group)[:count]  # only the last block that is not empty can be short
