"""Shards of pictures with classes, captions or both, read in one pass; owns webdataset's reader.

What is wrong with a shard is an `InputError` that every rank raises at the same sample. webdataset's reader takes a
shard that is cut at a header for a whole one, so the shards' headers are looked through first.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from clipx.data.captions import class_number, decode_captions, first_present
from clipx.data.decode import UndecodableError
from clipx.data.labelled.sets import CaptionedImage, EncodedImage, LabelledImage, MultiLabelImage
from clipx.data.text_cleaning import is_blank, without_bom
from clipx.errors import InputError, some_names
from clipx.storage.files import file_state, is_local, open_ranges
from clipx.storage.tar import fits_memory, is_sample_file, scan_tar, too_large
from clipx.storage.tar_headers import NotTarError

IMAGE_KEY = "webp;png;jpg;jpeg"
_SEPARATORS = re.compile(r"[\s,]+")


@dataclass(frozen=True)
class LabelledShards:
    """The images of shards with the number of a class in `cls`."""

    shards: tuple[str, ...]
    num_classes: int

    def images(self) -> Iterator[LabelledImage]:
        """See `read_labelled`."""
        return read_labelled(self.shards, num_classes=self.num_classes)

    def identity(self) -> list[object]:
        """See `ImageSource.identity`."""
        return [*shard_states(self.shards), self.num_classes]


@dataclass(frozen=True)
class MultiLabelShards:
    """The images of shards with the numbers of classes in `cls`, or a vector with a value per class in `npy`."""

    shards: tuple[str, ...]
    num_classes: int

    def images(self) -> Iterator[MultiLabelImage]:
        """See `read_multi_label`."""
        return read_multi_label(self.shards, num_classes=self.num_classes)

    def identity(self) -> list[object]:
        """See `ImageSource.identity`."""
        return [*shard_states(self.shards), self.num_classes]


@dataclass(frozen=True, kw_only=True)
class CaptionedShards:
    """The images of shards with their captions; the fields are `read_captioned`'s."""

    shards: tuple[str, ...]
    image_key: str = IMAGE_KEY
    caption_key: str = "txt"
    every_line: bool = False

    def images(self) -> Iterator[CaptionedImage]:
        """See `read_captioned`."""
        return read_captioned(
            self.shards, image_key=self.image_key, caption_key=self.caption_key, every_line=self.every_line
        )

    def identity(self) -> list[object]:
        """See `ImageSource.identity`."""
        return [*shard_states(self.shards), self.image_key, self.caption_key, self.every_line]


def shard_states(shards: Sequence[str]) -> list[object]:
    """Where each shard lies, its size and time.

    Raises:
        InputError: one is not there or cannot be asked.
    """
    try:
        return [[str(Path(path).absolute()) if is_local(path) else path, *file_state(path)] for path in shards]
    except OSError as error:
        raise InputError(f"shard {error.filename or shards[0]} cannot be read ({error.strerror or error})") from error


def read_labelled(shards: Sequence[str], *, num_classes: int) -> Iterator[LabelledImage]:
    """Every image with its class.

    Raises:
        InputError: a shard is not whole, a sample lacks its picture or `cls`, or `cls` is no number below
            `num_classes`.
    """
    for name, fields in _read_samples(shards):
        text = _member(fields, "cls", name).decode("utf-8", errors="replace")
        label = class_number(text, num_classes)
        if label is None:
            raise InputError(f"{name}: cls is {text.strip()[:80]!r}; it must be a number from 0 to {num_classes - 1}")
        yield LabelledImage(name=name, data=_member(fields, IMAGE_KEY, name), label=label)


def read_multi_label(shards: Sequence[str], *, num_classes: int) -> Iterator[MultiLabelImage]:
    """Every image with the classes of what it shows, perhaps none.

    They stand in `cls`: numbers with white space or commas between them, or a JSON list; or in `npy` (CLIP_benchmark's
    way): a vector of `num_classes` values, of which those that are not zero mark a class.

    Raises:
        InputError: a shard is not whole, or a sample lacks its picture or classes, or has others.
    """
    for name, fields in _read_samples(shards):
        if "npy" in fields and "cls" not in fields:
            labels = _marked(fields["npy"], name, num_classes)
        else:
            labels = _numbers(_member(fields, "cls", name), name, num_classes)
        yield MultiLabelImage(name=name, data=_member(fields, IMAGE_KEY, name), labels=labels)


def _numbers(data: bytes, name: str, num_classes: int) -> tuple[int, ...]:
    text = without_bom(data.decode("utf-8", errors="replace")).strip()
    words: list[object] = [word for word in _SEPARATORS.split(text) if word]
    if text.startswith("["):
        try:
            words = list(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}: cls is {text[:80]!r}, which is no JSON list; mend it") from error
    labels = [None if isinstance(word, bool) else class_number(str(word), num_classes) for word in words]
    if None in labels:
        wrong = str(words[labels.index(None)])[:80]
        raise InputError(f"{name}: cls holds {wrong!r}; it must be of numbers from 0 to {num_classes - 1}")
    return tuple(sorted({label for label in labels if label is not None}))


def _marked(data: bytes, name: str, num_classes: int) -> tuple[int, ...]:
    import numpy as np

    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{name}: its npy cannot be read ({' '.join(str(error).split())}); write it again") from error
    if values.shape != (num_classes,) or values.dtype.kind not in "buif":
        raise InputError(
            f"{name}: its npy holds {values.dtype} of shape {values.shape}; it must hold a number for each of the "
            f"{num_classes} classes"
        )
    return tuple(np.flatnonzero(values).tolist())


def read_captioned(
    shards: Sequence[str], *, image_key: str, caption_key: str, every_line: bool = False
) -> Iterator[CaptionedImage]:
    """Every image with its captions: the entries of a json list, or the lines of a text member; blank ones are none.

    Args:
        every_line: blank lines are captions too, and an image may have no line, as in CLIP_benchmark; `caption_key` is
            an extension.

    Raises:
        InputError: a shard is not whole, or a sample lacks its picture or a caption.
    """
    for name, fields in _read_samples(shards):
        captions: Sequence[str]
        if every_line:
            captions = _text_lines(_member(fields, caption_key, name), name)
        else:
            try:
                decoded = decode_captions(fields, caption_key)
            except UndecodableError as error:
                raise InputError(f"{name}: {error}") from error
            captions = [line.strip() for caption in decoded for line in caption.splitlines() if not is_blank(line)]
        yield CaptionedImage(name=name, data=_member(fields, image_key, name), captions=tuple(captions))


def read_pictures(shards: Sequence[str]) -> Iterator[tuple[EncodedImage, str | None]]:
    """Every image with its first caption, a line of `txt`; None without one.

    Raises:
        InputError: a shard is not whole, or a sample lacks its picture.
    """
    for name, fields in _read_samples(shards):
        captions = _text_lines(fields["txt"], name) if "txt" in fields else []
        first = next((line.strip() for line in captions if not is_blank(line)), None)
        yield EncodedImage(name=name, data=_member(fields, IMAGE_KEY, name)), first


def _text_lines(data: bytes, name: str) -> list[str]:
    try:
        return without_bom(data.decode("utf-8")).splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: its captions are not UTF-8 text; write them again") from error


def _read_samples(shards: Sequence[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each sample's name and its members by extension; at least one sample."""
    for shard in shards:
        if fault := _fault(shard):
            raise InputError(f"shard {shard} {fault}; write or fetch it again")
    import webdataset  # which imports torch, and a folder that is not there should be said at once

    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(list(shards)),
        webdataset.tarfile_to_samples(handler=webdataset.reraise_exception, select_files=is_sample_file),
    )
    num_samples = 0
    try:
        for sample in pipeline:
            num_samples += 1
            members = {key: value for key, value in sample.items() if not key.startswith("__")}
            yield f"sample {sample['__key__']} of {sample['__url__']}", members
    except (tarfile.TarError, OSError) as error:
        reason = " ".join(str(part) for part in error.args)
        raise InputError(f"{reason}: no whole tar file; write or fetch it again") from error
    if num_samples == 0:
        raise InputError(f"{shards[0] if len(shards) == 1 else some_names(shards)}: no samples; the set is empty")


def _fault(shard: str) -> str | None:
    """Why not every sample of a shard can be read, or None."""
    try:
        file = open_ranges(shard, sequential=True)
        try:
            scan = scan_tar(file)
        finally:
            file.close()
    except NotTarError as error:
        return str(error).partition(";")[0]  # a shard of the layout is not left out
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if faults := [fault.text for fault in scan.faults() if fault.kind != "many members"]:
        return faults[0]
    if large := next((m for i in range(len(scan.keys)) for m in scan.members(i) if not fits_memory([m])), None):
        return f"holds a sample that is none: {too_large([large])}"
    twice = next((key for key, after in pairwise(scan.keys) if key == after), None)
    return None if twice is None else f"has a member twice in sample {twice.decode(errors='replace')}"


def _member(fields: dict[str, bytes], keys: str, name: str) -> bytes:
    data = first_present(fields, keys)
    if data is None:
        raise InputError(f"{name} has no {keys.replace(';', ', ')}; members: {some_names(sorted(fields))}")
    return data
