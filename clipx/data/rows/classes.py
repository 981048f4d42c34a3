"""From the labels that a source has, numbers or words, to the numbers of classes with names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clipx.data.rows.class_lists import CLASS_NAMES
from clipx.data.rows.row import Rows
from clipx.errors import InputError, some_names

_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_PADDED = re.compile(r"[0-9]{1,18}")
_NONE = "-1"  # in HF datasets a label that is not known


@dataclass(frozen=True)
class Classes:
    """The classes of a set by number, and how its labels name them."""

    names: tuple[str, ...]
    places: Mapping[str, int]
    """For each label, as text, the number of its class."""
    several: bool = False
    """Whether a label is a list of them."""

    def numbers(self, label: object) -> tuple[int, ...] | None:
        """The numbers of the classes that a label names, ascending; None without a label."""
        if not isinstance(label, list):
            text = _text(label)
            return None if text is None or text not in self.places else (self.places[text],)
        texts = {text for part in label if (text := _text(part)) is not None}
        return tuple(sorted(self.places[text] for text in texts if text in self.places))


def find_classes(rows: Rows, *, origin: str, names: Sequence[str] = ()) -> Classes | None:
    """The classes of a source; None if it has no labels.

    With a list of the classes' names, labels are those names, or else places in it. Without one they are words, which
    are numbered by name, as torchvision's ImageFolder numbers folders.

    Args:
        origin: what messages call the source.
        names: of the classes by number; instead of those that the source lists.

    Raises:
        InputError: no row has a label; one is unknown, out of range or no label; numbers without a list of names; a
            class twice in a list of which labels are the words.
    """
    labels = rows.labels()
    if labels is None:
        return None
    words = list(rows.label_words())
    texts, several = (set(words), False) if words else _texts(labels, origin)
    found = words or sorted(texts)
    if not found:
        raise InputError(f"{origin}: no row has a label; give a set with labels")
    listed = tuple(names or rows.class_names())
    if listed:
        return Classes(listed, _by_names(found, listed, in_order=bool(words), origin=origin), several)
    if not words and all(map(_NUMBER.fullmatch, found)):
        raise InputError(
            f"{origin}: its labels are numbers ({some_names(found)}), whose names are not known; put {CLASS_NAMES} "
            "beside it, one class per line"
        )
    return Classes(tuple(found), {word: number for number, word in enumerate(found)}, several)


def _texts(labels: Iterable[object], origin: str) -> tuple[set[str], bool]:
    """The different labels, as texts, and whether any row has a list of them."""
    found: set[str] = set()
    several = False
    for row, label in enumerate(labels):
        several = several or isinstance(label, list)
        for part in label if isinstance(label, list) else [label]:
            if (text := _text(part)) is not None:
                found.add(text)
            elif part is not None and not isinstance(part, int | float | str):
                raise InputError(
                    f"{origin} row {row}: its label is a {type(part).__name__}; a label is a number or a word"
                )
    return found, several


def _text(label: object) -> str | None:
    """A label as text; None if there is none: nothing, NaN, -1."""
    if isinstance(label, float) and label.is_integer():  # a whole column is one of floats as soon as a value is missing
        label = int(label)
    if not isinstance(label, int | str):
        return None
    text = str(label).strip()
    return None if text in ("", _NONE) else text


def _by_names(labels: Sequence[str], names: Sequence[str], *, in_order: bool, origin: str) -> dict[str, int]:
    """The number of each label's class, where the names are listed."""
    place = {name: number for number, name in reversed(list(enumerate(names)))}
    if all(label in place for label in labels):
        if twice := next((label for label in labels if names.count(label) > 1), None):
            raise InputError(f"{origin}: the class {twice!r} is listed twice; give each a name of its own")
        return {label: place[label] for label in labels}
    if all(_NUMBER.fullmatch(label) and int(label) < len(names) for label in labels):
        return {label: int(label) for label in labels}
    if in_order and len(labels) == len(names):
        return _in_order(labels, place, origin)
    if wrong := next((label for label in labels if label not in place and not _NUMBER.fullmatch(label)), None):
        what = f"its {len(labels)} class folders" if in_order else f"its label {wrong[:80]!r}"
        raise InputError(
            f"{origin}: {what} and the {len(names)} listed classes ({some_names(names)}) do not go together; list the "
            "name of each"
        )
    largest = max((label for label in labels if _NUMBER.fullmatch(label)), key=int)
    raise InputError(
        f"{origin}: its label {largest} is out of range; {len(names)} classes are listed, 0 to {len(names) - 1}"
    )


def _in_order(labels: Sequence[str], place: Mapping[str, int], origin: str) -> dict[str, int]:
    """The numbers of folders that are named otherwise than their classes, as n01440764 for a tench: by place."""
    for number, label in enumerate(labels):
        if place.get(label, number) != number:
            raise InputError(
                f"{origin}: {label!r} is class {place[label]} of {CLASS_NAMES} but folder {number} by name, and other "
                "folders are not in that list; list the name of each folder"
            )
    if all(map(_PADDED.fullmatch, labels)) and sorted(labels, key=int) != list(labels):
        raise InputError(
            f"{origin}: its folders are numbers that do not count by name ({some_names(labels)}), so none can tell "
            f"which line of {CLASS_NAMES} is whose; write them with leading zeros"
        )
    return {label: number for number, label in enumerate(labels)}
