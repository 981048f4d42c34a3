"""Divides an evaluation, its forward passes included, among all ranks.

Item i goes to rank i mod W. Sharded models need all ranks in every forward pass, so all ranks do the same number of
passes: a rank without items left embeds a filler and drops the result.

Shapes: B items of this rank, N items of all ranks, D embedding.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.decode import UndecodableError, decode_image
from clipx.data.labelled import EncodedImage
from clipx.distributed.collectives import all_gather, gather_objects, raise_on_all_ranks, rank, world_size
from clipx.errors import InputError
from clipx.pretrained import Pretrained

Item = TypeVar("Item")
ImageT = TypeVar("ImageT", bound=EncodedImage)

_DECODERS = 4  # threads; Pillow decodes and resizes without holding the interpreter's lock


def share(items: Iterable[Item], *, batch_size: int, group: ProcessGroup | None) -> Iterator[list[Item]]:
    """Yields this rank's items in batches of at most `batch_size`: as many batches on every rank, some may be empty.

    Every rank iterates over all items, so no rank needs to know their number. After reading a batch, and before the
    caller embeds it, the ranks exchange errors.

    Raises:
        InputError: any rank failed to read; raised on all ranks.
    """
    this_rank, num_ranks = rank(group), world_size(group)
    remaining = enumerate(items)
    while True:
        local: list[Item] = []
        index = -1
        with raise_on_all_ranks(group):
            for index, item in islice(remaining, num_ranks * batch_size):
                if index % num_ranks == this_rank:
                    local.append(item)
        if index < 0:
            return
        yield local


def embed_images(
    pretrained: Pretrained, images: Iterable[ImageT], *, batch_size: int, group: ProcessGroup | None
) -> Iterator[tuple[list[ImageT], Tensor]]:
    """Yields this rank's images, batch by batch, with their embeddings, float32 (B, D).

    Raises:
        InputError: after the last batch, on all ranks, if any rank cannot decode an image. Metrics of an incomplete set
            could not be compared.
    """
    size = pretrained.config.image.image_size
    blank = torch.zeros(size, size, 3, dtype=torch.uint8)
    broken: list[str] = []

    def pixels(image: ImageT) -> Tensor:
        try:
            return pretrained.preprocess(decode_image(image.data))
        except UndecodableError as error:
            broken.append(f"{image.name}: {error}")
            return blank

    with ThreadPoolExecutor(_DECODERS) as threads:
        for local in share(images, batch_size=batch_size, group=group):
            images_BHWC = torch.stack(list(threads.map(pixels, local)) or [blank])
            yield local, pretrained.encode_image(images_BHWC)[: len(local)].float()
    if all_broken := [message for messages in gather_objects(broken, group) for message in messages]:
        raise InputError(f"{len(all_broken)} pictures of the evaluation set cannot be decoded; {all_broken[0]}")


def embed_texts(
    pretrained: Pretrained, texts: Iterable[str], *, batch_size: int, group: ProcessGroup | None
) -> Iterator[tuple[list[str], Tensor]]:
    """Yields this rank's texts, batch by batch, with their embeddings, float32 (B, D)."""
    for local in share(texts, batch_size=batch_size, group=group):
        yield local, pretrained.encode_text(local or ["a"])[: len(local)].float()


def gather_shared(local_BD: Tensor, *, total: int, group: ProcessGroup | None) -> Tensor:
    """Gathers the rows of all ranks in the order of the N items: row i is that of item i, from rank i mod W.

    Returns:
        (N, D), the same on all ranks; one all-gather.
    """
    num_ranks = world_size(group)
    rows = -(-total // num_ranks)
    padded = local_BD.new_zeros(rows, local_BD.shape[1])
    padded[: local_BD.shape[0]] = local_BD
    by_rank = all_gather(padded, group).view(num_ranks, rows, -1)
    return by_rank.transpose(0, 1).reshape(num_ranks * rows, -1)[:total]
