"""Classes for everything that a person points at, block by block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch.distributed import ProcessGroup

from clipx.data.inputs import Inputs
from clipx.distributed.collectives import gather_objects, raise_on_all_ranks, rank, world_size
from clipx.errors import InputError
from clipx.pretrained import Pretrained
from clipx.use.classified import Classified, joined
from clipx.use.encode import encode
from clipx.use.reading import Decode, ItemInfo, LeftOut

if TYPE_CHECKING:
    from clipx.pretrained.classes import BestClasses, ClassEmbeddings

_KINDS = (np.int32, np.float32, np.float32)  # of what is kept of a picture's best classes
_LIKELY = 0.5  # a class that is rather there than not


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """How pictures are read and classified."""

    top: int = 5
    """Classes of each picture, at most."""
    multi: bool = False
    """Whether each class is a question of its own, or they exclude each other."""
    threshold: float | None = None
    """Least probability of a class; None means 0.5 with `multi`, else that all are told."""
    batch_size: int = 128
    """Pictures per forward pass."""
    decode: Decode = "pil"
    workers: int = 0
    """Processes that read, from 2 on; else threads."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:  # NaN is not
            raise InputError(f"threshold={self.threshold} is no probability; give one from 0 to 1")


def classify_inputs(
    pretrained: Pretrained,
    inputs: Inputs,
    classes: "ClassEmbeddings",
    options: ClassifyOptions,
    *,
    group: ProcessGroup | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Classified:
    """The classes of all pictures, the same on all ranks, which share the work.

    Args:
        pretrained: the model.
        inputs: pictures; what is none is left out.
        classes: as the model has them.
        options: how they are read and classified.
        group: of the ranks.
        on_progress: gets (inputs done, inputs) of this rank.

    Raises:
        InputError: not one of the inputs is a picture.
        RunError: storage fails, or the model's weights are broken.
    """
    size, ranks = options.batch_size, world_size(group)
    starts = range(size * rank(group), len(inputs), size * ranks)
    blocks = [range(start, min(start + size, len(inputs))) for start in starts]
    found = _Collected(classes, options)
    with raise_on_all_ranks(group):
        done, total = 0, sum(map(len, blocks))
        for block in encode(pretrained, inputs, blocks, decode=options.decode, workers=options.workers, texts=False):
            found.left_out += block.left_out
            if block.image_BD is not None:
                best = pretrained.best_classes(block.image_BD, classes, top=options.top, multi=options.multi)
                found.add(block.items, best)
            done += len(block.rows)
            if on_progress is not None:
                on_progress(done, total)
    classified = joined(gather_objects(found.classified(), group))
    if not len(classified):
        raise InputError(_no_picture(classified.left_out))
    return classified


class _Collected:
    """What one rank has found so far."""

    def __init__(self, classes: "ClassEmbeddings", options: ClassifyOptions) -> None:
        self.left_out: list[LeftOut] = []
        self._classes, self._options = classes, options
        self._rows: list[int] = []
        self._keys: list[str] = []
        self._names: list[str] = []
        width = min(options.top, len(classes.names))
        self._numbers: list[tuple[np.ndarray, ...]] = [tuple(np.empty((0, width), kind) for kind in _KINDS)]

    def add(self, items: Sequence[ItemInfo], best: "BestClasses") -> None:
        """Takes in the pictures of a block."""
        self._rows += [item.row for item in items]
        self._keys += [item.key for item in items]
        self._names += [item.name for item in items]
        numbers = zip(best, _KINDS, strict=True)
        self._numbers.append(tuple(tensor_BK.numpy().astype(kind) for tensor_BK, kind in numbers))

    def classified(self) -> Classified:
        """All of it."""
        index_NK, probability_NK, cosine_NK = (np.concatenate(blocks) for blocks in zip(*self._numbers, strict=True))
        threshold = self._options.threshold
        return Classified(
            class_names=self._classes.names,
            rows=self._rows,
            keys=self._keys,
            names=self._names,
            index_NK=index_NK,
            probability_NK=probability_NK,
            cosine_NK=cosine_NK,
            threshold=threshold if threshold is not None else _LIKELY if self._options.multi else 0.0,
            several=self._options.multi,
            left_out=self.left_out,
        )


def _no_picture(left_out: Sequence[LeftOut]) -> str:
    """Why nothing could be classified, in one line."""
    first = left_out[0]
    why = f"{first.name}: {first.reason}{f' ({first.detail})' if first.detail else ''}"
    if len(left_out) == 1:
        return f"{why}; give a picture"
    return f"none of {len(left_out):,} inputs is a picture; the first is {why}"
