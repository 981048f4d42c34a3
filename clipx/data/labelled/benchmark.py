"""CLIP_benchmark's `wds_*` folders, and folders of shards with a list of classes, as `clipx data make` writes them.

    FOLDER/  classnames.txt                          one class per line, whose number, from 0, is the label
             zeroshot_classification_templates.txt   prompts with {c} where the class goes
             dataset_type.txt                        `retrieval` or `multilabel`, or absent for classification
             test/nshards.txt  test/0.tar ...        a picture with `cls` (classification) or `txt` (retrieval)
             train/...  val/...                      the same, perhaps without nshards.txt

Blank lines of both lists do not count. Without parts the shards lie in the folder itself, of any names, and the
templates may be absent.
"""

from pathlib import Path

from clipx.config.suite import SetType
from clipx.data.class_names import check_templates, read_entries, read_lines
from clipx.data.index.shard_list import expand_shards
from clipx.data.labelled.sets import DEFAULT_TEMPLATES, AnySet, ClassificationSet, MultiLabelSet, RetrievalSet
from clipx.data.labelled.shards import CaptionedShards, LabelledShards, MultiLabelShards
from clipx.data.labelled.splits import choose_split, named
from clipx.data.rows.class_lists import CLASS_NAMES, DATASET_TYPE
from clipx.errors import InputError

__all__ = [
    "CLASS_NAMES",
    "TEMPLATES",
    "benchmark_shards",
    "dataset_type",
    "is_benchmark_folder",
    "open_benchmark",
    "read_entries",
    "templates_beside",
]

TEMPLATES = "zeroshot_classification_templates.txt"
_NUM_SHARDS = "nshards.txt"
_LAYOUT = "CLIP_benchmark's wds_* layout"
_MAX_DIGITS = 6  # of a number of shards


def is_benchmark_folder(folder: Path) -> bool:
    """Whether a folder is meant to be of this layout: it has a kind, or shards, or says how many there are."""
    return (folder / DATASET_TYPE).is_file() or bool(_tars(folder)) or bool(_parts(folder))


def has_parts(folder: Path) -> bool:
    """Whether a folder has parts: folders with shards, or that say how many there are."""
    return bool(_parts(folder))


def dataset_type(folder: Path) -> SetType:
    """The kind of a folder, from its dataset_type.txt.

    Raises:
        InputError: no such folder, or a dataset_type.txt that says something else.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one in {_LAYOUT}")
    path = folder / DATASET_TYPE
    kind = " ".join(read_lines(str(path), needed_by=_LAYOUT)).lower() if path.is_file() else "classification"
    match kind:
        case "classification" | "retrieval" | "multilabel":
            return kind
        case _:
            raise InputError(f"{path} says {kind!r}; clipx evaluates `classification`, `retrieval` and `multilabel`")


def open_benchmark(folder: Path, *, split: str = "test", every_line: bool = False) -> AnySet:
    """Reads class names, templates and the list of shards.

    Args:
        split: see `choose_split`.
        every_line: of captions, see `read_captioned`.

    Raises:
        InputError: no such folder, a file is missing or empty, a template lacks {c}, the split is not there, or the
            shards are not those of nshards.txt.
    """
    kind = dataset_type(folder)
    if kind == "retrieval":
        part, shards = benchmark_shards(folder, split=split)
        captioned = CaptionedShards(shards=shards, every_line=every_line)
        return RetrievalSet(name=named(folder, part, split), split=part, source=captioned)
    templates = templates_beside(folder, required=not _tars(folder))
    names = read_entries(folder / CLASS_NAMES, needed_by=_LAYOUT)
    part, shards = benchmark_shards(folder, split=split)
    name = named(folder, part, split)
    if kind == "multilabel":
        source = MultiLabelShards(shards, len(names))
        return MultiLabelSet(name=name, split=part, source=source, class_names=names, templates=templates)
    labelled = LabelledShards(shards, len(names))
    return ClassificationSet(name=name, split=part, source=labelled, class_names=names, templates=templates)


def templates_beside(folder: Path, *, required: bool) -> tuple[str, ...]:
    """The prompts of a folder's file of templates; clipx's own, where there is none and none is required.

    Raises:
        InputError: the file cannot be read, or a template lacks {c}.
    """
    path = folder / TEMPLATES
    if not (required or path.is_file()):
        return DEFAULT_TEMPLATES
    templates = read_entries(path, needed_by=_LAYOUT)
    check_templates(templates, name=str(path))
    return templates


def benchmark_shards(folder: Path, *, split: str = "test") -> tuple[str | None, tuple[str, ...]]:
    """The part of a folder that is read, and its shards: 0.tar to N-1.tar with N from nshards.txt.

    Where nshards.txt may be absent, all tars of the part by their numbers or names.

    Raises:
        InputError: the shards are not exactly these, or the split is not there.
    """
    parts = _parts(folder)
    whole = _tars(folder)
    part = choose_split(parts or ([] if whole else ["test"]), split, origin=str(folder))
    if part is None:
        return None, tuple(expand_shards([str(folder)]))
    place = folder / part
    if part != "test" and not (place / _NUM_SHARDS).is_file():
        return part, tuple(expand_shards([str(place)]))
    return part, _counted_shards(place)


def _counted_shards(place: Path) -> tuple[str, ...]:
    path = place / _NUM_SHARDS
    text = " ".join(read_lines(str(path), needed_by=_LAYOUT))
    if not (text.isdecimal() and len(text) <= _MAX_DIGITS and int(text) > 0):
        raise InputError(f"{path} says {text[:80]!r}; it must hold the number of shards")
    expected = [f"{number}.tar" for number in range(int(text))]
    present = {shard.name for shard in _tars(place)}
    if wrong := sorted(present.symmetric_difference(expected)):
        fault = "is missing" if wrong[0] in expected else "is not among them"
        raise InputError(f"{path} says {text} shards, 0.tar to {int(text) - 1}.tar, but {wrong[0]} {fault}")
    return tuple(str(place / name) for name in expected)


def _parts(folder: Path) -> list[str]:
    """The folders of shards in a folder."""
    if not folder.is_dir():
        return []
    places = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
    return [path.name for path in places if (path / _NUM_SHARDS).is_file() or _tars(path)]


def _tars(folder: Path) -> list[Path]:
    return list(folder.glob("[!.]*.tar"))
