"""Blocks of rows, read and decoded: what goes to the model, and what is left out.

It runs in threads of this process or in worker processes, far from the model: a `BlockReader` pickles without it.

Shapes: I pictures of a block, C captions of it, S image size, T tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipx.data.decode import UndecodableError
from clipx.data.inputs import Inputs
from clipx.data.parallel import begun_ahead, in_processes, num_cores
from clipx.data.rows.row import LeftOutError
from clipx.data.tokenizer import Tokenizer
from clipx.data.transforms import EvalTransform
from clipx.errors import InputError

Decode = Literal["pil", "fast"]

_THREADS = max(4, num_cores())  # of one block's rows; some wait for a disk or a server while others decode
_AT_ONCE = 8  # rows of a block that one thread takes: handing out each alone costs as much as reading it
_BLOCKS_AHEAD = 3


class ItemInfo(NamedTuple):
    """A row that was embedded."""

    row: int
    """Its number among all rows, those left out included."""
    key: str
    name: str
    """What a person finds it by."""
    caption: str | None
    """The first of its texts; None if it has none, or none was asked for."""


class LeftOut(NamedTuple):
    """A row that was not embedded."""

    row: int
    name: str
    reason: str
    detail: str


@dataclass(frozen=True)
class ReadBlock:
    """The good rows of a block, in order."""

    rows: range
    items: list[ItemInfo]
    left_out: list[LeftOut]
    has_image: list[bool]
    """Of each item; those that have none are texts."""
    pixels_ISSC: np.ndarray
    """uint8, of the items that have an image."""
    tokens_T: np.ndarray
    """int64, of the items that have a caption."""
    lengths_C: np.ndarray
    """int64."""


class _Row(NamedTuple):
    info: ItemInfo
    pixels_SSC: Tensor | None
    tokens_T: Tensor | None


class BlockReader:
    """Reads, decodes and tokenizes the rows of a block.

    Args:
        inputs: where rows are read.
        transform: makes a square of a picture.
        decode: "pil" for Pillow's pixels, or "fast".
        tokenizer: None leaves texts alone.
        image_size: S.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        transform: EvalTransform,
        decode: Decode,
        tokenizer: Tokenizer | None,
        image_size: int,
    ) -> None:
        self._inputs = inputs
        self._transform = transform
        self._decode: Decode = decode
        self._tokenizer = tokenizer
        self._image_size = image_size

    def __call__(self, rows: range) -> ReadBlock:
        """A block, in a worker process."""
        torch.set_num_threads(1)
        return self.joined(rows, self.some(rows))

    def some(self, rows: range) -> list[_Row | LeftOut]:
        """Some rows, in order."""
        return [self.row(row) for row in rows]

    def row(self, row: int) -> _Row | LeftOut:
        """One row; whatever is wrong with it is a reason to leave it out."""
        try:
            item = self._inputs.read(row)
        except LeftOutError as error:
            return LeftOut(row, error.name, error.reason, error.detail)
        caption = item.captions[0] if item.captions and self._tokenizer is not None else None
        if item.image is None and caption is None:
            return LeftOut(row, item.name, "no picture", "")
        try:
            pixels_SSC = None if item.image is None else self._transform.decoded(item.image, decode=self._decode)
        except UndecodableError as error:
            return LeftOut(row, item.name, "unreadable picture", str(error))
        try:
            tokens_T = self._tokens(caption)
        except InputError as error:
            return LeftOut(row, item.name, "unreadable row", str(error))
        return _Row(ItemInfo(row, item.key, item.name, caption), pixels_SSC, tokens_T)

    def joined(self, rows: range, read: Iterable[_Row | LeftOut]) -> ReadBlock:
        """The block of these rows."""
        results = list(read)
        good = [result for result in results if isinstance(result, _Row)]
        pixels = [row.pixels_SSC for row in good if row.pixels_SSC is not None]
        tokens = [row.tokens_T for row in good if row.tokens_T is not None]
        size = self._image_size
        pixels_ISSC = torch.stack(pixels) if pixels else torch.empty((0, size, size, 3), dtype=torch.uint8)
        return ReadBlock(
            rows,
            items=[row.info for row in good],
            left_out=[result for result in results if isinstance(result, LeftOut)],
            has_image=[row.pixels_SSC is not None for row in good],
            pixels_ISSC=pixels_ISSC.numpy(),
            tokens_T=(torch.cat(tokens) if tokens else torch.empty(0, dtype=torch.int64)).numpy(),
            lengths_C=np.array([len(tokens_T) for tokens_T in tokens], np.int64),
        )

    def _tokens(self, caption: str | None) -> Tensor | None:
        return None if caption is None or self._tokenizer is None else self._tokenizer.encode([caption])[0]


def read_blocks(reader: BlockReader, blocks: Iterable[range], *, workers: int) -> Iterator[ReadBlock]:
    """Yields the blocks in their order; those that come next are read meanwhile.

    Args:
        workers: processes, from 2 on; else threads of this one read and decode.

    Raises:
        RunError: a process died, or the storage failed.
    """
    if workers >= 2:
        yield from in_processes(reader, blocks, workers=workers)
        return
    pool = ThreadPoolExecutor(_THREADS)

    def begin(rows: range) -> Callable[[], ReadBlock]:
        parts = (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))
        futures = [pool.submit(reader.some, part) for part in parts]
        return lambda: reader.joined(rows, (row for future in futures for row in future.result()))

    try:
        yield from begun_ahead(begin, blocks, ahead=_BLOCKS_AHEAD)
    finally:
        pool.shutdown(cancel_futures=True)
