"""The classes and prompts that a person names on the command line; needs no torch for lists and folders of shards."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipx.config.paths import expand_home
from clipx.data.class_names import checked_classes, checked_templates, read_entries, read_lines
from clipx.data.labelled import open_classes
from clipx.data.labelled.benchmark import templates_beside
from clipx.data.labelled.sets import DEFAULT_TEMPLATES
from clipx.data.rows.class_lists import CLASS_NAMES
from clipx.errors import InputError

_CLASSES, _TEMPLATES = "--classes", "--templates"
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_LISTS = (*_TABLES, ".txt", ".json", ".yaml", ".yml")  # nobody calls a class so


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Names of classes, and the prompts to ask for them."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    origin: str
    """What to call the list in messages."""
    is_set: bool = False
    """Whether it is a set's: if two of its classes are one to a model, as in ImageNet, the person did nothing wrong."""


def read_classes(value: str, templates: Sequence[str] = (), *, multi: bool = False) -> ClassList:
    """The classes that --classes names.

    Args:
        value: names with commas between them, in double quotes where a name has a comma of its own; a text file with a
            name per line; or a folder or file with a set that has classes, whose prompts are taken too.
        templates: prompts with `{c}`, or files with one per line; none means those of the set, or "a photo of a {c}.".
        multi: whether each class is a question of its own; else one alone would have every picture.

    Raises:
        InputError: no class, one alone without `multi`, a blank one, one twice, a file or folder that is not there or
            has no classes, a template without `{c}`.
    """
    prompts = read_templates(templates)
    found = _read(value)
    if len(found.names) == 1 and not multi:
        raise InputError(
            f"{_CLASSES}: {found.names[0]!r} alone would have every picture; name another, or ask for each with --multi"
        )
    return replace(found, templates=prompts) if prompts else found


def _read(value: str) -> ClassList:
    path = Path(expand_home(value)) if value.strip() else None
    if path is not None and (path.is_dir() or (path.suffix.lower() in _TABLES and path.is_file())):
        names, templates = _of_set(path)
        return ClassList(names=names, templates=templates, origin=value, is_set=True)
    if path is not None and path.is_file():
        names, origin = checked_classes(read_lines(str(path), needed_by=_CLASSES), name=value), value
    elif path is not None and "," not in value and ("/" in value or path.suffix.lower() in _LISTS):
        fault = "neither a file nor a folder" if path.exists() else "no such file or folder"
        raise InputError(f"{_CLASSES} {value}: {fault}; give one, or names with commas between them")
    else:
        names, origin = checked_classes(_split(value), name=_CLASSES), _CLASSES
    _refuse_twice(names, origin)
    return ClassList(names=names, templates=DEFAULT_TEMPLATES, origin=origin)


def read_templates(values: Sequence[str]) -> tuple[str, ...]:
    """The prompts that --templates names, each time it is given; none if it is not.

    Raises:
        InputError: a value is neither a file nor has `{c}`, or a line of a file lacks it.
    """
    found: list[str] = []
    for value in values:
        path = Path(expand_home(value))
        if "{c}" in value and not path.is_file():
            found.append(value)
        elif path.is_file():
            found += checked_templates(
                [line for line in read_lines(str(path), needed_by=_TEMPLATES) if line], name=str(path)
            )
        else:
            raise InputError(
                f"{_TEMPLATES} {value!r} is no file, and lacks {{c}}, the place of the class; "
                "give e.g. 'a photo of a {c}.'"
            )
    return tuple(found)


def _of_set(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and prompts of a set; its pictures need not be there if its list of classes is."""
    if (path / CLASS_NAMES).is_file():
        names = read_entries(str(path / CLASS_NAMES), needed_by=_CLASSES)
        return names, templates_beside(path, required=False)
    try:
        opened = open_classes(str(path))
    except InputError as error:
        raise InputError(f"{_CLASSES} {path} has no {CLASS_NAMES}, and is no set that has classes: {error}") from error
    return opened.class_names, opened.templates


def _split(value: str) -> list[str]:
    """The names of a list with commas; nothing of an empty one."""
    if not value.strip():
        return []
    if len(value.strip().splitlines()) > 1:
        raise InputError(f"{_CLASSES} {value!r} has several lines; put commas between the names, or name their file")
    try:
        return next(csv.reader([value.strip()], skipinitialspace=True, strict=True))
    except (csv.Error, StopIteration) as error:
        raise InputError(
            f"{_CLASSES} {value!r}: {error}; put a name that has a comma in double quotes, and double those within"
        ) from error


def _refuse_twice(names: Sequence[str], origin: str) -> None:
    """Refuses equal names at once; those that are equal to the model alone are found when it is there."""
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        first = seen.setdefault(name.lower(), number)
        if first != number:
            raise InputError(f"{origin}: {name!r} stands twice, as entries {first} and {number}; name it once")
