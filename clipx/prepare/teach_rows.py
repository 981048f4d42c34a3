"""What teachers say of blocks of samples, and the file and the report of a shard that are made of it.

Shapes: R good samples of a block, K views, C captions of all, D embedding, S image size.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipx.data.device_augment import DeviceAugment
from clipx.data.teachers.shard_file import shard_to_parts
from clipx.errors import RunError
from clipx.prepare.teach_folder import Report
from clipx.prepare.teach_reading import ReadBlock, Shape
from clipx.pretrained import Pretrained

Precision = Literal["fp32", "bf16"]

_TWICE = "another sample of the shard has this key"


class TeacherModel(NamedTuple):
    """A teacher."""

    name: str
    model: str
    """Where it lies, for people who read the description."""
    pretrained: Pretrained
    """On this rank's device."""

    @property
    def shape(self) -> Shape:
        """In which it sees views."""
        image = self.pretrained.config.image
        return Shape(image.image_size, image.interpolation)


class Rows(NamedTuple):
    """A block as it is stored."""

    block: ReadBlock
    """Without its pixels: a shard's blocks are kept until all are there, and pixels would take gigabytes."""
    images_RKD: list[NDArray[np.uint16]]
    """Of each teacher, the bits of bfloat16."""
    texts_CD: list[NDArray[np.uint16]]


def embedded(
    teachers: Sequence[TeacherModel], block: ReadBlock, *, colours: DeviceAugment | None, precision: Precision
) -> Rows:
    """One forward pass of each teacher over the pictures of a block, and one over its captions.

    Args:
        teachers: at least one, all on one device.
        block: what is embedded.
        colours: the augmentations that the device computes, if there are any.
        precision: in which teachers compute.

    Raises:
        RunError: an embedding is not finite.
    """
    images_RKD, texts_CD = [], []
    texts = list(chain.from_iterable(block.texts))
    for teacher in teachers:
        pretrained, device = teacher.pretrained, teacher.pretrained.device
        dim, (rows, views) = pretrained.config.embed_dim, (len(block.good), block.pixels[teacher.shape].shape[1])
        image_BD, text_CD = torch.empty(0, dim), torch.empty(0, dim)
        if rows:
            pixels_BSSC = torch.from_numpy(block.pixels[teacher.shape]).flatten(0, 1)
            if colours is not None:
                pixels_BSSC = colours(pixels_BSSC.to(device), torch.from_numpy(block.seeds_RK).flatten())
            tokens_T, lengths_C = pretrained.tokenizer.encode(texts)
            with _autocast(device, precision):
                image_BD = pretrained.encode_image(pixels_BSSC)
                text_CD = pretrained.encode_tokens(tokens_T, lengths_C)
        images_RKD.append(_bits(image_BD, teacher.name).reshape(rows, views, dim))
        texts_CD.append(_bits(text_CD, teacher.name))
    return Rows(replace(block, pixels={}), images_RKD, texts_CD)


def joined(taken: Sequence[Rows], *, teachers: Sequence[TeacherModel], views: int, size: int) -> "ShardContent":
    """The file of a shard and its report.

    Args:
        taken: all its blocks, in order.
        teachers: who said it.
        views: K.
        size: bytes of the shard.
    """
    keys = [key for rows in taken for key in rows.block.keys]
    twice = {key for key, count in Counter(keys).items() if count > 1}
    reasons = {unread.key: unread.reason for rows in taken for unread in rows.block.unread}
    reasons |= dict.fromkeys(twice, _TWICE)
    good_keys = [rows.block.keys[place] for rows in taken for place in rows.block.good]
    texts = [texts for rows in taken for texts in rows.block.texts]
    kept_R = np.array([key not in twice for key in good_keys], bool)
    kept_C = kept_R.repeat([len(row) for row in texts])
    dims = [teacher.pretrained.config.embed_dim for teacher in teachers]
    images = [
        np.concatenate([np.empty((0, views, dim), np.uint16), *(rows.images_RKD[number] for rows in taken)])
        for number, dim in enumerate(dims)
    ]
    captions = [
        np.concatenate([np.empty((0, dim), np.uint16), *(rows.texts_CD[number] for rows in taken)])
        for number, dim in enumerate(dims)
    ]
    if twice:
        images, captions = [array[kept_R] for array in images], [array[kept_C] for array in captions]
        texts = [row for row, kept in zip(texts, kept_R.tolist(), strict=True) if kept]
    row_of = {key: row for row, key in enumerate(key for key in good_keys if key not in twice)}
    distinct = list(dict.fromkeys(keys))
    parts = shard_to_parts(distinct, [row_of.get(key, -1) for key in distinct], texts, images, captions)
    report = Report(bytes=size, taught=len(texts), texts=sum(map(len, texts)), left_out=tuple(reasons.items()))
    return ShardContent(parts, report)


class ShardContent(NamedTuple):
    """What is written of a shard."""

    parts: list[bytes | memoryview]
    report: Report


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _bits(rows_BD: Tensor, teacher: str) -> NDArray[np.uint16]:
    """The bits of bfloat16, on the host."""
    rows_BD = rows_BD.float().cpu()
    if not rows_BD.isfinite().all():
        raise RunError(f"teacher {teacher} gives embeddings that are not finite; look at its weights, or give another")
    bits_BD: NDArray[np.uint16] = rows_BD.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return bits_BD
