"""Lists of class names and prompt templates: from config or text files, for training sources and evaluation sets."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from clipx.data.text_cleaning import is_blank, without_bom
from clipx.errors import InputError
from clipx.storage.files import read_file


def read_lines(path: str, *, needed_by: str) -> tuple[str, ...]:
    """The lines of a UTF-8 text file at a path or address, without BOM, white space around them, or empty last lines.

    Raises:
        InputError: no such file, one that cannot be read or is not UTF-8, or one without lines.
    """
    try:
        lines = without_bom(read_file(path).decode("utf-8")).rstrip().splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} is missing; {needed_by} needs it") from error
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise InputError(f"{path} cannot be read ({reason}); {needed_by} needs it") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; {needed_by} needs it") from error
    if not lines:
        raise InputError(f"{path} is empty; {needed_by} needs it")
    return tuple(line.strip() for line in lines)


def read_entries(path: str | Path, *, needed_by: str) -> tuple[str, ...]:
    """The lines of a list; empty ones do not count, and what only looks empty is refused, as others might count it.

    Raises:
        InputError: the file cannot be read (`read_lines`), or a line shows nothing.
    """
    entries = tuple(line for line in read_lines(str(path), needed_by=needed_by) if line)
    if hidden := next((entry for entry in entries if is_blank(entry)), None):
        raise InputError(f"{path}: the line {ascii(hidden)[:80]} shows nothing; give it text, or delete it")
    return entries


def listed(value: str | Sequence[str], *, name: str) -> tuple[str, ...]:
    """The entries of a list, or of the file that a string names; messages name the config's field `name`.

    Raises:
        InputError: the file cannot be read (`read_lines`); no entries, or a blank one.
    """
    entries = read_lines(value, needed_by=name) if isinstance(value, str) else tuple(map(without_bom, value))
    if not entries:
        raise InputError(f"{name}=[] is empty; list at least one, or leave it out")
    if blank := [number for number, entry in enumerate(entries, 1) if is_blank(entry)]:
        where = f"line {blank[0]} of {value}" if isinstance(value, str) else f"entry {blank[0]}"
        raise InputError(f"{name}: {where} is blank; each entry needs text")
    return entries


def check_templates(templates: Sequence[str], *, name: str) -> None:
    """Checks that every template has a place for the class.

    Raises:
        InputError: one lacks `{c}`.
    """
    for template in templates:
        if "{c}" not in template:
            raise InputError(f"{name}: {template!r} lacks {{c}}, the place of the class or caption")


def checked_classes(class_names: Sequence[str], *, name: str = "classes") -> tuple[str, ...]:
    """The names without byte order marks and the white space around them.

    Args:
        class_names: of the classes.
        name: of the list, for messages.

    Raises:
        InputError: not a list, no class, one that is no text or blank.
    """
    if isinstance(class_names, str) or not isinstance(class_names, Iterable):
        raise InputError(f"{name} must be a list of names, not {type(class_names).__name__}; give ['cat', 'dog']")
    listed = list(class_names)
    if wrong := [type(entry).__name__ for entry in listed if not isinstance(entry, str)]:
        raise InputError(f"{name}: a name must be a str, not {wrong[0]}")
    if not listed:
        raise InputError(f"{name}: no class is named; name at least one")
    if blank := [number for number, entry in enumerate(listed, 1) if is_blank(entry)]:
        raise InputError(f"{name}: entry {blank[0]} is blank; each class needs a name")
    return tuple(without_bom(entry).strip() for entry in listed)


def checked_templates(templates: str | Sequence[str], *, name: str = "templates") -> tuple[str, ...]:
    """One template or several as a tuple.

    Raises:
        InputError: there is none, one is no text or lacks `{c}`.
    """
    listed = (templates,) if isinstance(templates, str) else tuple(templates)
    if not listed or not all(isinstance(entry, str) for entry in listed):
        raise InputError(f"{name} must be texts with {{c}} in the place of the class, at least one")
    check_templates(listed, name=name)
    return listed
