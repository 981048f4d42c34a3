"""Which rows of a table are of one picture."""

import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from clipx.data.rows.table_row import of_struct, path_of


def picture_key(image: object, folder: str) -> bytes | None:
    """16 bytes that are equal for an equal file or equal bytes in a table's column of images; None if it has none.

    `folder` is where paths start from, an absolute path: sources may name one file from several folders.
    """
    if isinstance(image, Mapping):
        image = of_struct(image)
    if isinstance(image, bytes) and image:
        return blake2b(image, digest_size=16).digest()
    if isinstance(image, str) and image.strip():
        path = path_of(image, folder)
        if "/." in path or "//" in path:
            path = _usual(path)
        return blake2b(path.encode("utf-8", "surrogatepass"), digest_size=16, person=b"path").digest()
    return None


def _usual(path: str) -> str:
    """One spelling of a path: a/./b and a/c/../b are a/b, the latter if c is no link to elsewhere."""
    if "/.." not in path or "\0" in path:
        return str(Path(path))
    usual, real = os.path.normpath(path), os.path.realpath(path)
    return usual if os.path.realpath(usual) == real else real
