"""Writing of pages, never over what somebody else wrote."""

from pathlib import Path

from clipx.errors import InputError
from clipx.pages.html import MARK
from clipx.storage.folders import write_atomically

_HEAD = 2048  # bytes; the mark stands in the first lines


def require_own_page(path: Path) -> None:
    """Checks that a page may be written there: called before the work, not after.

    Raises:
        InputError: something is there that is no page of clipx's, or the folder cannot hold it.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file, e.g. {path / 'report.html'}")
        if path.exists() and not _is_page(path):
            raise InputError(f"{path} is there, and clipx did not write it; move it away or name another")
        if not (parent := next(folder for folder in path.absolute().parents if folder.exists())).is_dir():
            raise InputError(f"{path} cannot be written: {parent} is no folder; name another")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; name another") from error


def write_page(path: Path, html: str) -> None:
    """Writes a page whole or not at all, over an earlier page of clipx's, with the folders above it.

    Raises:
        InputError: it cannot be written, or something else is there.
    """
    require_own_page(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, html)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; name another") from error


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(_HEAD)
