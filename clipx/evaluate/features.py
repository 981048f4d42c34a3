"""Embeddings of an evaluation set: computed by all ranks together, kept by weights, pictures and transform.

What a set of a million pictures takes is bounded: embeddings above 128 MB lie in a file and are read tile by tile
(`mapped_rows`), labels, names and captions are flat arrays.

Shapes: N images, D embedding, C classes, P lines of caption.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.labelled import CaptionedImage, EncodedImage, LabelledImage, MultiLabelImage
from clipx.distributed.collectives import gather_objects, raise_on_all_ranks
from clipx.errors import InputError
from clipx.evaluate.feature_cache import Arrays, read_entry, write_entry
from clipx.evaluate.mapped_rows import RowSpool, TextList, TextListBuilder
from clipx.evaluate.options import Decode, EvaluateOptions
from clipx.evaluate.sharing import Round, embed_image_rounds, gather_round
from clipx.pretrained import Pretrained

_DIGEST = 16  # bytes


class EvaluationSet(Protocol):
    """A set whose images can be read in order, by every rank alike (`clipx.data.labelled.open_set`)."""

    def identity(self) -> str:
        """Hex digits that change when the set does."""

    def images(self) -> Iterator[Any]:
        """The images, encoded, with label, labels or captions."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """The embeddings of a set's images, and what the set says of each."""

    image_ND: NDArray[np.float32]
    """Unit length, in the set's order; perhaps a mapped file: `mapped_rows.read_rows` reads it in bounded memory."""
    names: TextList
    """What a person finds each image by."""
    label_N: NDArray[np.int64] | None = None
    """Classes of a classification set."""
    labels_NC: NDArray[np.bool_] | None = None
    """Which classes each image of a multi-label set has."""
    captions: TextList | None = None
    """All lines of a retrieval set, image after image."""
    image_P: NDArray[np.int64] | None = None
    """For each line its image."""
    first_like_N: NDArray[np.int64] | None = None
    """For each image of a retrieval set the first one with equal bytes."""

    def __len__(self) -> int:
        return len(self.image_ND)


def image_features(
    pretrained: Pretrained,
    dataset: EvaluationSet,
    *,
    batch_size: int,
    group: ProcessGroup | None,
    cache: Path | None,
    decode: Decode = "pil",
) -> Features:
    """Embeds every image of a set, or finds that done in the cache; every rank of `group` must call it.

    Args:
        batch_size: images per forward pass.
        cache: folder of kept features (`feature_cache.default_cache`); None neither looks nor keeps.
        decode: "pil", or "fast" (`Pretrained.pixels`).

    Returns:
        The same on all ranks, to the bit for any number of them.

    Raises:
        InputError: the set breaks its layout, or an image cannot be decoded.
    """
    num_classes = len(getattr(dataset, "class_names", ()))
    entry = entry_of(cache, "images", pretrained, dataset, decode, group=group)
    if (found := found_by_all(entry, group=group)) is not None:
        return _features(found, num_classes=num_classes)
    records = _Records()
    images = records.collect(dataset.images())
    blocks = embed_image_rounds(pretrained, images, batch_size=batch_size, group=group, decode=decode)
    image_ND = gathered(blocks, pretrained.config.embed_dim, batch_size=batch_size, group=group)
    arrays = {"image": image_ND, **records.arrays()}
    keep(entry, arrays, group=group)
    return _features(arrays, num_classes=num_classes)


def features_of(
    pretrained: Pretrained, dataset: EvaluationSet, options: EvaluateOptions, *, group: ProcessGroup | None
) -> Features:
    """`image_features` as the options say."""
    return image_features(
        pretrained,
        dataset,
        batch_size=options.batch_size,
        group=group,
        cache=options.cache,
        decode=options.decode,
    )


def gathered(
    blocks: Iterable[tuple[Round[Any], Tensor]], width: int, *, batch_size: int, group: ProcessGroup | None
) -> NDArray[np.float32]:
    """The embeddings of all rounds on every rank, float32 (N, D), perhaps a mapped file.

    Raises:
        InputError: any rank has no room for them; raised on all ranks.
    """
    spool = RowSpool(width)
    for block, local_BD in blocks:
        rows_ND = gather_round(local_BD, block.count, batch_size=batch_size, group=group).cpu().numpy()
        with raise_on_all_ranks(group):
            try:
                spool.append(rows_ND)
            except OSError as error:
                reason = error.strerror or error
                raise InputError(f"embeddings have no room ({reason}); name a folder with room in TMPDIR") from error
    return spool.rows()


def entry_of(
    cache: Path | None,
    what: str,
    pretrained: Pretrained,
    dataset: EvaluationSet,
    *content: str,
    group: ProcessGroup | None,
) -> Path | None:
    """Where the cache keeps something of a model and a set; None without a cache."""
    if cache is None:
        return None
    with raise_on_all_ranks(group):
        key = json.dumps([1, what, pretrained.fingerprint, dataset.identity(), *content])
    return cache / hashlib.sha256(key.encode()).hexdigest()[:32]


def found_by_all(entry: Path | None, *, group: ProcessGroup | None) -> dict[str, NDArray[Any]] | None:
    """An entry of the cache, if every rank has it."""
    if entry is None:
        return None
    found = read_entry(entry)
    return found if all(gather_objects(found is not None, group)) else None


def keep(entry: Path | None, arrays: Arrays, *, group: ProcessGroup | None) -> None:
    """Writes an entry of the cache, once on each machine; returns on all ranks when it is there."""
    if entry is None:
        return
    if os.environ.get("LOCAL_RANK", "0") == "0" and read_entry(entry) is None:
        write_entry(entry, arrays)
    gather_objects(None, group)


class _Records:
    """Notes what a set says of each of its images while they are read."""

    def __init__(self) -> None:
        self._names, self._captions = TextListBuilder(), TextListBuilder()
        self._labels = array("q")
        self._counts = array("q")  # labels or captions of each image
        self._digests = bytearray()
        self._kind: Literal["label", "labels", "captions"] | None = None

    def collect(self, images: Iterator[EncodedImage]) -> Iterator[EncodedImage]:
        """Yields the images unchanged."""
        for image in images:
            self._names.append(image.name)
            match image:
                case LabelledImage():
                    self._kind = "label"
                    self._labels.append(image.label)
                case CaptionedImage():
                    self._kind = "captions"
                    for caption in image.captions:
                        self._captions.append(caption)
                    self._counts.append(len(image.captions))
                    self._digests += blake2b(image.data, digest_size=_DIGEST).digest()
                case MultiLabelImage():
                    self._kind = "labels"
                    self._labels.extend(image.labels)
                    self._counts.append(len(image.labels))
            yield image

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays, by name."""
        names = self._names.built()
        arrays: dict[str, NDArray[Any]] = {"name_utf8": names.utf8, "name_end": names.end_N}
        if self._kind == "captions":
            captions = self._captions.built()
            arrays |= {"caption_utf8": captions.utf8, "caption_end": captions.end_N}
            digest_N = np.frombuffer(self._digests, f"V{_DIGEST}")
            _, first, inverse = np.unique(digest_N, return_index=True, return_inverse=True)
            arrays["first_like"] = first[inverse]
        else:
            arrays["label"] = np.array(self._labels, dtype=np.int64)
        if self._kind != "label":
            arrays["count"] = np.array(self._counts, dtype=np.int64)
        return arrays


def _features(arrays: Arrays, *, num_classes: int) -> Features:
    image_ND = arrays["image"]
    names = TextList(arrays["name_utf8"], arrays["name_end"])
    if "count" not in arrays:
        return Features(image_ND=image_ND, names=names, label_N=arrays["label"])
    image_P = np.repeat(np.arange(len(image_ND)), arrays["count"])
    if "label" in arrays:
        labels_NC = np.zeros((len(image_ND), num_classes), dtype=np.bool_)
        labels_NC[image_P, arrays["label"]] = True
        return Features(image_ND=image_ND, names=names, labels_NC=labels_NC)
    captions = TextList(arrays["caption_utf8"], arrays["caption_end"])
    first_like_N = arrays["first_like"]
    return Features(image_ND=image_ND, names=names, captions=captions, image_P=image_P, first_like_N=first_like_N)
