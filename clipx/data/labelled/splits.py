"""The parts of a set, test, val and train, whatever they are called; which one is read."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from clipx.errors import InputError, some_names

_CALLED: Mapping[str, tuple[str, ...]] = {
    "test": ("test", "testing", "eval", "evaluation"),
    "val": ("val", "valid", "validation", "dev"),
    "train": ("train", "training"),
}


def choose_split(present: Iterable[str], wanted: str, *, origin: str) -> str | None:
    """The part of a set to read, by the name that it has there; None for a set without parts.

    A set without test images is evaluated on those for validation, and one without parts as a whole; any other part
    must be there.

    Args:
        present: the parts that are there.
        wanted: one of them, or `test`, `val` or `train` whatever it is called there.
        origin: what the message calls the set.

    Raises:
        InputError: it is not there.
    """
    names = list(present)
    for choice in (wanted, "val") if wanted == "test" else (wanted,):
        for called in (choice, *_CALLED.get(choice, ())):
            found = [name for name in names if name == called] or [name for name in names if name.lower() == called]
            if found:
                return found[0]
    if not names and wanted == "test":
        return None
    has = f"it has {some_names(names)}; {_hint(names, wanted)}" if names else "it has no parts; ask for none"
    raise InputError(f"{origin} has no split {wanted!r}: {has}")


def _hint(names: Sequence[str], wanted: str) -> str:
    """What to ask for: the part that is meant by the word nearest to the one that was given, if it is there."""
    there = {name.lower(): name for name in reversed(names)}
    meant: dict[str, str | None] = {}
    for called in _CALLED.values():
        part = next((there[word] for word in called if word in there), None)
        meant |= dict.fromkeys(called, part)
    meant |= there
    nearest = get_close_matches(wanted.lower(), meant, n=1)
    part = meant[nearest[0]] if nearest else None
    return "name one of them" if part is None else f"did you mean {part!r}?"


def named(path: Path, split: str | None, wanted: str) -> str:
    """The name of a set; with the part in brackets, if that is not the test part that was asked for."""
    name = path.absolute().name
    if split is None:
        return f"{name} (whole set)"
    return name if wanted == "test" and split.lower() in _CALLED["test"] else f"{name} ({split})"
