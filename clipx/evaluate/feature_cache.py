"""Arrays that are worth keeping between commands, such as the embeddings of an evaluation set.

    FOLDER/<key>/NAME.npy ...     the arrays
                 entry.json       their sizes and checksums

An entry appears whole, by renaming. One that is damaged, or was left half-written, counts as absent and is written
anew. The entries used longest ago (time of entry.json) make room for new ones.
"""

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipx.config.paths import cache_folder
from clipx.errors import InputError
from clipx.evaluate.mapped_rows import read_rows
from clipx.storage.drafts import draft_of, finish

MAX_BYTES = 20 * 10**9
_MANIFEST = "entry.json"
_FORMAT = 1
_PIECE = 2**20
_IN_USE_S = 3600.0  # used so recently: another command may still read it

Arrays = Mapping[str, NDArray[Any]]

log = logging.getLogger(__name__)


def default_cache() -> Path:
    """The folder of features in the user's cache: `$CLIPX_CACHE/features`, by default ~/.cache/clipx/features."""
    return cache_folder() / "features"


def read_entry(entry: Path, *, compare: bool = True) -> dict[str, NDArray[Any]] | None:
    """The arrays of an entry, mapped from their files; None if it is absent, half-written or damaged.

    Args:
        entry: its folder.
        compare: the content with the checksums, beside the sizes.
    """
    try:
        manifest = json.loads((entry / _MANIFEST).read_bytes())
        if manifest["format"] != _FORMAT:
            return None
        arrays = {}
        for name, content in manifest["arrays"].items():
            path = entry / f"{name}.npy"
            size = path.stat().st_size
            if size != content[0] or (compare and _checksum(path) != content[1]):
                log.warning("%s is damaged; the features are computed anew", path)
                return None
            arrays[name] = np.load(path, mmap_mode="r" if size > _PIECE else None, allow_pickle=False)
        with suppress(OSError):  # another user's: it is read all the same
            os.utime(entry / _MANIFEST)
        return arrays
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_entry(entry: Path, arrays: Arrays, *, max_bytes: int = MAX_BYTES) -> None:
    """Writes an entry, unless another process does; older ones make room.

    A cache that cannot be written is no reason to lose what was computed: it is logged.
    """
    try:
        write_in_pieces(
            entry, {name: InPieces(value.shape, value.dtype, _tiles(value)) for name, value in arrays.items()}
        )
        _make_room(entry.parent, keep=entry, max_bytes=max_bytes)
    except InputError as error:  # another process is at it
        log.info("%s", error)
    except OSError as error:
        log.warning("features are not kept in %s: %s", entry.parent, error.strerror or error)


class InPieces(NamedTuple):
    """An array of which some rows after others are at hand."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Iterable[NDArray[Any]]


def write_in_pieces(entry: Path, arrays: Mapping[str, InPieces]) -> None:
    """Writes an entry of any size.

    Raises:
        InputError: another process writes it.
        OSError: it cannot be written.
    """
    with draft_of(entry) as draft:
        contents = {name: _write(draft / f"{name}.npy", array) for name, array in arrays.items()}
        (draft / _MANIFEST).write_text(json.dumps({"format": _FORMAT, "arrays": contents}))
        if entry.is_dir():  # damaged, or another process was faster
            shutil.rmtree(entry)
        finish(draft)
        draft.rename(entry)


def _tiles(value: NDArray[Any]) -> Iterator[NDArray[Any]]:
    rows = max(1, _PIECE // max(1, value[:1].nbytes))
    return (read_rows(value, start, start + rows) for start in range(0, len(value), rows))


def _write(path: Path, array: InPieces) -> list[int]:
    """Writes an array piece by piece; returns the file's size and checksum."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for piece in array.pieces:
            file.write(piece.tobytes())
        file.flush()
        os.fsync(file.fileno())
    return [path.stat().st_size, _checksum(path)]


def _checksum(path: Path) -> int:
    total = 0
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            total = zlib.crc32(piece, total)
    return total


def _make_room(folder: Path, *, keep: Path, max_bytes: int) -> None:
    """Removes the entries that were used longest ago until the rest, with `keep`, has at most `max_bytes`."""
    entries = []
    for manifest in folder.glob(f"*/{_MANIFEST}"):
        with suppress(OSError):
            size = sum(file.stat().st_size for file in manifest.parent.iterdir())
            entries.append((manifest.stat().st_mtime, size, manifest.parent))
    excess = sum(size for _, size, _ in entries) - max_bytes
    for used, size, entry in sorted(entries):
        if excess <= 0 or used > time.time() - _IN_USE_S:
            return
        if entry != keep:
            shutil.rmtree(entry, ignore_errors=True)
            excess -= size
