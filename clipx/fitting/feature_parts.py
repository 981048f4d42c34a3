"""The finished blocks of a pass over samples, each a file that appears whole, and their joining to arrays."""

import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipx.errors import RunError
from clipx.evaluate.feature_cache import Arrays, InPieces, write_in_pieces
from clipx.storage.folders import Folder
from clipx.types import BadSample

BAD = "bad"
"""The array that holds the records of bad samples, as JSON in UTF-8."""


class Parts:
    """The blocks of an entry of `clipx.evaluate.feature_cache` that is not there yet.

    Args:
        entry: its folder; the blocks lie beside it.
    """

    def __init__(self, entry: Path) -> None:
        self._entry = entry
        self._folder = entry.with_name(f".{entry.name}.parts")

    def missing(self, num_blocks: int) -> list[int]:
        """The blocks that are to be computed, ascending."""
        with _named(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            there = {path.stem for path in self._folder.glob("*.npz")}
        return [number for number in range(num_blocks) if self._path(number).stem not in there]

    def write(self, number: int, arrays: Arrays, bad: Sequence[BadSample]) -> None:
        """Writes a block.

        Raises:
            RunError: it cannot be written.
        """
        path, aside = self._path(number), f".{number:08d}.new"
        with _named(self._folder):
            with Folder(str(self._folder)).create(aside) as file:
                np.savez(file, **{BAD: _packed(bad)}, **arrays)  # type: ignore[arg-type]
            path.with_name(aside).replace(path)

    def join(self, num_blocks: int, num_samples: int) -> None:
        """Makes the entry of all blocks, which are there, and removes them.

        Raises:
            RunError: a block is damaged, or the entry cannot be written.
        """
        bad: list[BadSample] = []
        for number in range(num_blocks):
            records = json.loads(self._array(number, BAD).tobytes())
            bad += [BadSample(**record) for record in records]
        with np.load(self._path(0)) as first:
            names = [name for name in first if name != BAD]
        firsts = {name: self._array(0, name) for name in names}
        arrays = {
            name: InPieces((num_samples, *first.shape[1:]), first.dtype, self._column(name, num_blocks))
            for name, first in firsts.items()
        }
        packed = _packed(bad)
        arrays[BAD] = InPieces(packed.shape, packed.dtype, [packed])
        with _named(self._entry):
            write_in_pieces(self._entry, arrays)
            shutil.rmtree(self._folder)

    def _column(self, name: str, num_blocks: int) -> Iterator[NDArray[Any]]:
        return (self._array(number, name) for number in range(num_blocks))

    def _array(self, number: int, name: str) -> NDArray[Any]:
        path = self._path(number)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                array: NDArray[Any] = arrays[name]
                return array
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            with suppress(OSError):
                path.unlink()
            raise RunError(f"{path} was damaged and is removed now; run the same command again") from error

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.npz"


def _packed(bad: Sequence[BadSample]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps([asdict(sample) for sample in bad]).encode(), np.uint8)


@contextmanager
def _named(place: Path) -> Iterator[None]:
    """Says of a failure of the disk what was written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"features cannot be kept in {place}: {reason}; free space there, or set keep_features=false"
        ) from error
