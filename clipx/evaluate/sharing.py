"""Divides an evaluation among all ranks, forward passes included.

Item i goes to rank i mod W. Sharded models need every rank in every forward pass, so all ranks make the same number of
them: who has nothing left embeds a filler and drops the result. Shapes: B items of this rank, D embedding, N of all.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.decode import UndecodableError, decode_image
from clipx.data.labelled import Picture
from clipx.distributed.collectives import all_gather, gather_objects, raise_on_all_ranks, rank, world_size
from clipx.errors import InputError
from clipx.pretrained import Pretrained

Item = TypeVar("Item")
Pictured = TypeVar("Pictured", bound=Picture)

_DECODERS = 4  # threads; Pillow decodes and resizes without holding the interpreter's lock


def share(items: Iterable[Item], *, batch_size: int, group: ProcessGroup | None) -> Iterator[list[Item]]:
    """This rank's items in batches of at most `batch_size`; equally many batches on every rank, some maybe empty.

    Every rank iterates over all items, so none has to be told how many there are. Before a batch is embedded, each
    tells the others whether it could read as far as that.

    Raises:
        InputError: of reading on any rank, on all of them.
    """
    own_rank, num_ranks = rank(group), world_size(group)
    rest = enumerate(items)
    while True:
        own: list[Item] = []
        number = -1
        with raise_on_all_ranks(group):
            for number, item in islice(rest, num_ranks * batch_size):
                if number % num_ranks == own_rank:
                    own.append(item)
        if number < 0:
            return
        yield own


def embed_images(
    pretrained: Pretrained, pictures: Iterable[Pictured], *, batch_size: int, group: ProcessGroup | None
) -> Iterator[tuple[list[Pictured], Tensor]]:
    """This rank's pictures, batch by batch, with their embeddings, float32 (B, D).

    Raises:
        InputError: after the last batch, on all ranks, if a picture of any rank cannot be decoded. A set without some
            of its pictures gives figures that compare with nothing.
    """
    size = pretrained.config.image.image_size
    blank = torch.zeros(size, size, 3, dtype=torch.uint8)
    broken: list[str] = []

    def pixels(picture: Pictured) -> Tensor:
        try:
            return pretrained.preprocess(decode_image(picture.data))
        except UndecodableError as error:
            broken.append(f"{picture.name}: {error}")
            return blank

    with ThreadPoolExecutor(_DECODERS) as threads:
        for own in share(pictures, batch_size=batch_size, group=group):
            images_BHWC = torch.stack(list(threads.map(pixels, own)) or [blank])
            yield own, pretrained.encode_image(images_BHWC)[: len(own)].float()
    _raise_together(broken, group)


def embed_texts(
    pretrained: Pretrained, texts: Iterable[str], *, batch_size: int, group: ProcessGroup | None
) -> Iterator[tuple[list[str], Tensor]]:
    """This rank's texts, batch by batch, with their embeddings, float32 (B, D)."""
    for own in share(texts, batch_size=batch_size, group=group):
        yield own, pretrained.encode_text(own or [" "])[: len(own)].float()


def gather_shared(own_BD: Tensor, *, total: int, group: ProcessGroup | None) -> Tensor:
    """The rows of all ranks in the order of the items: row i was item i, on rank i mod W.

    Args:
        own_BD: this rank's rows, in its order.
        total: N, number of items of all ranks.

    Returns:
        (N, D), the same on all ranks; one all-gather.
    """
    num_ranks = world_size(group)
    rows = -(-total // num_ranks)
    padded = own_BD.new_zeros(rows, own_BD.shape[1])
    padded[: own_BD.shape[0]] = own_BD
    by_rank = all_gather(padded, group).view(num_ranks, rows, -1)
    return by_rank.transpose(0, 1).reshape(num_ranks * rows, -1)[:total]


def _raise_together(broken: list[str], group: ProcessGroup | None) -> None:
    everywhere = [message for messages in gather_objects(broken, group) for message in messages]
    if everywhere:
        raise InputError(f"{len(everywhere)} pictures of the evaluation set cannot be decoded; {everywhere[0]}")
