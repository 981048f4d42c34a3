"""The binaries of CIFAR-10 and CIFAR-100 (Krizhevsky 2009), as they are downloaded; read by torchvision."""

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from clipx.data.rows.class_lists import names_beside
from clipx.data.rows.row import Row, Rows
from clipx.errors import InputError
from clipx.storage.files import file_state

_FOLDERS = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}
SPLITS = ("train", "test")


class CifarRows(Rows):
    """The pictures of one split, as PNG, with the numbers of their classes; torchvision checks the files' sums.

    Raises:
        InputError: a file is missing or has another sum.
    """

    def __init__(self, folder: Path, *, split: str) -> None:
        self._folder, self._split = folder, split
        self._length = len(self._data.data)

    @cached_property
    def _data(self) -> Any:
        from torchvision import datasets

        kind = getattr(datasets, _FOLDERS[self._folder.name])
        try:
            return kind(str(self._folder.parent), train=self._split == "train", download=False)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"{self._folder} is not whole: a file is missing or is not CIFAR's; unpack the archive again"
            ) from error

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_data"}

    def __len__(self) -> int:
        return self._length

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        buffer = io.BytesIO()
        Image.fromarray(self._data.data[row]).save(buffer, "PNG")
        return Row(
            f"{self._folder.name} {self._split} {row}", buffer.getvalue(), [], label=int(self._data.targets[row])
        )

    def labels(self) -> Iterator[object]:
        """See `Rows.labels`."""
        return iter(self._data.targets)

    def class_names(self) -> Sequence[str]:
        """CIFAR's own, or those of a classnames.txt beside its folder."""
        return names_beside(self._folder.parent) or tuple(self._data.classes)

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        files = sorted(path for path in self._folder.iterdir() if path.is_file())
        return [str(self._folder.absolute()), self._split, [[path.name, *file_state(str(path))] for path in files]]


def cifar_folder(folder: Path) -> Path | None:
    """The folder of CIFAR's binaries that a folder is or holds; None if it is no such folder.

    Raises:
        InputError: it holds both, CIFAR-10 and CIFAR-100.
    """
    if folder.absolute().name in _FOLDERS:
        return folder.absolute()
    found = [folder.absolute() / name for name in _FOLDERS if (folder / name).is_dir()]
    if len(found) > 1:
        raise InputError(f"{folder} holds both CIFAR-10 and CIFAR-100; name the folder of one of them")
    return found[0] if found else None
