"""Evaluation sets: CLIP_benchmark's `wds_*` folders and shards of captioned pictures; owns webdataset's reader.

    FOLDER/  classnames.txt                          one class per line, whose number, from 0, is the label
             zeroshot_classification_templates.txt   prompts with {c} where the class goes
             dataset_type.txt                        `retrieval`, or absent for classification
             test/nshards.txt  test/0.tar ...        a picture with `cls` (classification) or `txt` (retrieval)

Blank lines of both lists do not count. Sets are read in their order, in one pass, and by every rank alike;
`clipx.evaluate.sharing` divides the work. What is wrong with a set is an `InputError` that every rank raises at the
same sample. webdataset's reader takes a shard that is cut at a header for a whole one, so the shards' headers are
looked through first.
"""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from clipx.data.captions import class_number, decode_captions, first_present
from clipx.data.class_names import check_templates, read_lines
from clipx.data.decode import UndecodableError
from clipx.data.text_cleaning import is_blank, without_bom
from clipx.errors import InputError, some_names
from clipx.storage.files import open_ranges
from clipx.storage.tar import fits_memory, is_sample_file, scan_tar, too_large
from clipx.storage.tar_headers import NotTarError

IMAGE_KEY = "webp;png;jpg;jpeg"
_MAX_DIGITS = 6  # of a number of shards


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An image that is not decoded yet."""

    name: str
    """Key and shard, for messages."""
    data: bytes


@dataclass(frozen=True, kw_only=True)
class LabelledImage(EncodedImage):
    """An image and its class."""

    label: int


@dataclass(frozen=True, kw_only=True)
class CaptionedImage(EncodedImage):
    """An image and all captions that describe it."""

    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ClassificationSet:
    """Class names, templates and shards of a folder; the images are read later."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    shards: tuple[str, ...]


DatasetType = Literal["classification", "retrieval"]


def dataset_type(folder: Path) -> DatasetType:
    """The kind of a folder, from its dataset_type.txt.

    Raises:
        InputError: no such folder, or a dataset_type.txt that says something else.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one in CLIP_benchmark's wds_* layout")
    path = folder / "dataset_type.txt"
    kind = " ".join(_lines(path)).lower() if path.is_file() else "classification"
    match kind:
        case "classification" | "retrieval":
            return kind
        case _:
            raise InputError(f"{path} says {kind!r}; clipx evaluates `classification` and `retrieval`")


def require_type(folder: Path, wanted: DatasetType) -> None:
    """Checks the kind of a folder.

    Raises:
        InputError: the folder has no kind (`dataset_type`), or another one.
    """
    kind = dataset_type(folder)
    if kind != wanted:
        raise InputError(
            f"{folder} is a {kind} set by its dataset_type.txt (which may be absent for classification), "
            f"not a {wanted} set; give the evaluation the other `type`, or mend that file"
        )


def open_classification_set(folder: Path) -> ClassificationSet:
    """Reads class names, templates and the list of shards.

    Raises:
        InputError: no such folder or one for retrieval, a file is missing or empty, a template lacks {c}, or the shards
            are not those of nshards.txt.
    """
    require_type(folder, "classification")
    path = folder / "zeroshot_classification_templates.txt"
    templates = _entries(path)
    check_templates(templates, name=str(path))
    names = _entries(folder / "classnames.txt")
    return ClassificationSet(class_names=names, templates=templates, shards=benchmark_shards(folder))


def benchmark_shards(folder: Path) -> tuple[str, ...]:
    """The test shards of a folder, 0.tar to N-1.tar with N from nshards.txt.

    Raises:
        InputError: the shards are not exactly these.
    """
    path = folder / "test" / "nshards.txt"
    text = " ".join(_lines(path))
    if not (text.isdecimal() and len(text) <= _MAX_DIGITS and int(text) > 0):
        raise InputError(f"{path} says {text[:80]!r}; it must hold the number of shards")
    expected = [f"{number}.tar" for number in range(int(text))]
    present = {shard.name for shard in path.parent.glob("*.tar") if not shard.name.startswith(".")}
    if wrong := sorted(present.symmetric_difference(expected)):
        fault = "is missing" if wrong[0] in expected else "is not among them"
        raise InputError(f"{path} says {text} shards, 0.tar to {int(text) - 1}.tar, but {wrong[0]} {fault}")
    return tuple(str(path.parent / name) for name in expected)


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


def _entries(path: Path) -> tuple[str, ...]:
    """The lines of a list; empty ones do not count, and what only looks empty is refused, as others might count it."""
    entries = tuple(line for line in _lines(path) if line)
    if hidden := next((entry for entry in entries if is_blank(entry)), None):
        raise InputError(f"{path}: the line {ascii(hidden)[:80]} shows nothing; give it text, or delete it")
    return entries


def _lines(path: Path) -> tuple[str, ...]:
    return read_lines(str(path), needed_by="CLIP_benchmark's wds_* layout")
