"""From what a person names to a set: finds out what kind it is."""

from pathlib import Path

from clipx.config.paths import expand_home
from clipx.config.suite import SetType
from clipx.data.index.shard_list import expand_shards
from clipx.data.labelled.benchmark import (
    benchmark_shards,
    dataset_type,
    has_parts,
    is_benchmark_folder,
    open_benchmark,
)
from clipx.data.labelled.row_sets import open_row_set
from clipx.data.labelled.sets import AnySet, ClassificationSet, MultiLabelSet, RetrievalSet
from clipx.data.labelled.shards import CaptionedShards
from clipx.data.labelled.splits import named
from clipx.errors import InputError
from clipx.storage.files import is_local


def open_set(path: str, *, split: str = "test", every_line: bool = False) -> AnySet:
    """The set at a path: its classes, and its images when they are asked for.

    A set without a test part is read from the one for validation, one without parts as a whole; its name says so.

    Args:
        split: `test`, `val` or `train`, or the name that a part has in the set.
        every_line: of captions, see `read_captioned`.

    Raises:
        InputError: there is none, it is of no known kind, lacks a file that its kind needs, or has no such split.
    """
    place = Path(expand_home(path))
    if not place.exists():
        raise InputError(
            f"{path}: no such folder or file; give a wds_* folder, a folder for each class, a table of paths and "
            "labels, a saved data set or CIFAR's binaries"
        )
    if place.is_dir() and is_benchmark_folder(place):
        return open_benchmark(place, split=split, every_line=every_line)
    return open_row_set(place, split=split)


def open_classes(path: str, *, split: str = "test") -> ClassificationSet | MultiLabelSet:
    """The set at a path, which has classes.

    Raises:
        InputError: the cases of `open_set`; a set for retrieval.
    """
    opened = open_set(path, split=split)
    if isinstance(opened, RetrievalSet):
        raise _of_other_type(path, "classification", opened)
    return opened


def open_classification(path: str, *, split: str = "test") -> ClassificationSet:
    """The set at a path, of images of one class each.

    Raises:
        InputError: the cases of `open_set`; a set of another type.
    """
    opened = open_set(path, split=split)
    if not isinstance(opened, ClassificationSet):
        raise _of_other_type(path, "classification", opened)
    return opened


def open_retrieval(
    data: str, *, image_key: str, caption_key: str, every_line: bool = False, split: str = "test"
) -> RetrievalSet:
    """The captioned images of a folder with a test part, which is CLIP_benchmark's, or of shards.

    Args:
        data: the folder, or shards as `data.train` takes them.
        image_key: extensions that hold the image.
        caption_key: as `data.caption_key`.
        every_line: see `read_captioned`.

    Raises:
        InputError: there is no shard, the folder is one for classification, or has no such split; a split is asked of
            shards.
    """
    place = expand_home(data) if is_local(data) else data
    folder = Path(place)
    part: str | None = None
    name = folder.absolute().name
    if split != "test" and not has_parts(folder):
        raise InputError(f"{data} has no parts, so no split {split!r}; name the shards of that part, and no split")
    if (folder / "test").is_dir() or split != "test":
        if dataset_type(folder) != "retrieval":
            raise _of_other_type(place, "retrieval", open_benchmark(folder, split=split))
        part, shards = benchmark_shards(folder, split=split)
        name = named(folder, part, split)
    else:
        shards = tuple(expand_shards([data]))
    source = CaptionedShards(shards=shards, image_key=image_key, caption_key=caption_key, every_line=every_line)
    return RetrievalSet(name=name, split=part, source=source)


def type_of(opened: AnySet) -> SetType:
    """The word that dataset_type.txt and suites have for such a set."""
    match opened:
        case ClassificationSet():
            return "classification"
        case MultiLabelSet():
            return "multilabel"
        case RetrievalSet():
            return "retrieval"


def _of_other_type(path: str, wanted: str, opened: AnySet) -> InputError:
    return InputError(
        f"{path} is a {type_of(opened)} set (by its dataset_type.txt, if it has shards, or by its columns), not a "
        f"{wanted} set; give the evaluation the other `type`, or mend that"
    )
