"""The parts of a set, test, val and train, whatever they are called; which one is read."""

from collections.abc import Iterable, Mapping
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
    has = f"it has {some_names(names)}; name one of them" if names else "it has no parts; ask for none"
    raise InputError(f"{origin} has no split {wanted!r}: {has}")


def named(path: Path, split: str | None, wanted: str) -> str:
    """The name of a set; with the part in brackets, if that is not the test part that was asked for."""
    name = path.absolute().name
    if split is None:
        return f"{name} (whole set)"
    return name if wanted == "test" and split.lower() in _CALLED["test"] else f"{name} ({split})"
