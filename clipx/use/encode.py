"""Embeddings of any rows, block by block: the same bits whoever computes them, and however often it is begun anew.

A block of rows is always one forward pass of its own (`clipx.pretrained.threads`), so what it gives depends on its rows
and the model alone: not on ranks, workers, OMP_NUM_THREADS, or where a job was stopped. It may still differ between
kinds of CPU or GPU and versions of torch.

Shapes: B good rows of a block, I pictures of them, C captions of them, D embedding.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from clipx.data.inputs import Inputs
from clipx.pretrained import Pretrained
from clipx.pretrained.threads import num_threads, side_by_side
from clipx.use.reading import BlockReader, Decode, ItemInfo, LeftOut, ReadBlock, read_blocks


@dataclass(frozen=True)
class Encoded:
    """The embeddings of a block's good rows, on the CPU."""

    rows: range
    """All rows of the block."""
    items: list[ItemInfo]
    """The B good ones, in order."""
    image_BD: Tensor | None
    """float32, unit length, zeros for a row without a picture; None if no row has one."""
    text_BD: Tensor | None
    """float32, unit length, zeros for a row without a text; None if no row has one, or no texts were asked for."""
    has_image_B: Tensor
    """bool."""
    has_text_B: Tensor
    """bool."""
    left_out: list[LeftOut]
    """The others, each with its reason."""


def encode(
    pretrained: Pretrained,
    inputs: Inputs,
    blocks: Iterable[range],
    *,
    decode: Decode = "pil",
    workers: int = 0,
    texts: bool = True,
) -> Generator[Encoded]:
    """Yields the embeddings of each block of rows, in the order of blocks.

    While it lasts, torch computes with one thread per operation if the model is on a CPU.

    Args:
        pretrained: the model.
        inputs: the rows.
        blocks: numbers of rows; each is one forward pass.
        decode: "pil" for Pillow's pixels, or "fast".
        workers: processes that read and decode, from 2 on; else threads of this one do it.
        texts: whether the first caption of each row is embedded too.

    Raises:
        RunError: a worker process died, or the storage failed.
    """
    reader = BlockReader(
        inputs,
        transform=pretrained.transform,
        decode=decode,
        tokenizer=pretrained.tokenizer if texts else None,
        image_size=pretrained.config.image.image_size,
    )
    device = pretrained.device
    threads = num_threads(pretrained.model, device)
    read = read_blocks(reader, blocks, workers=workers)
    yield from side_by_side(partial(_embed, pretrained), read, device=device, threads=threads)


def _embed(pretrained: Pretrained, block: ReadBlock) -> Encoded:
    has_image_B = torch.tensor(block.has_image, dtype=torch.bool)
    has_text_B = torch.tensor([item.caption is not None for item in block.items], dtype=torch.bool)
    image_BD = text_BD = None
    if len(block.pixels_ISSC):
        image_ID = pretrained.encode_image(torch.from_numpy(block.pixels_ISSC))
        image_BD = _spread(image_ID, has_image_B)
    if len(block.lengths_C):
        text_CD = pretrained.encode_tokens(torch.from_numpy(block.tokens_T), torch.from_numpy(block.lengths_C))
        text_BD = _spread(text_CD, has_text_B)
    return Encoded(
        block.rows,
        items=block.items,
        image_BD=image_BD,
        text_BD=text_BD,
        has_image_B=has_image_B,
        has_text_B=has_text_B,
        left_out=block.left_out,
    )


def _spread(some_D: Tensor, has_B: Tensor) -> Tensor:
    """Embeddings of some rows in the places of these among all B, float32 on the CPU."""
    some_D = some_D.float().cpu()
    if len(some_D) == len(has_B):
        return some_D
    all_BD = some_D.new_zeros(len(has_B), some_D.shape[1])
    all_BD[has_B] = some_D
    return all_BD
