"""Folders of generated data: complete, or not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipx.errors import InputError
from clipx.storage.drafts import draft_of, finish


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill beside `out`, which gets that name at the end; nothing is left of it after an error.

    Raises:
        InputError: `out` exists or cannot be made.
    """
    try:
        if out.exists():
            raise InputError(f"{out} exists; remove it or write the synthetic set to another folder")
        with draft_of(out.absolute()) as draft:
            yield draft
            finish(draft)
            draft.rename(out)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror or error}; write the set to another folder") from error
