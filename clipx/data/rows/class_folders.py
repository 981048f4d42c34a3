"""Pictures in a folder for each class, as torchvision's ImageFolder has them, perhaps once for each split."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from clipx.data.rows.class_lists import names_beside
from clipx.data.rows.folders import FolderRows, files_in, is_hidden, is_picture
from clipx.data.rows.layouts import chosen_splits, is_split_name
from clipx.data.rows.row import LeftOutError, Row, Rows, TableColumns
from clipx.errors import InputError, some_names


class ClassFolderRows(Rows):
    """The pictures of a folder, whose first folder is the label of each; captions beside them are read, too."""

    uses = (*FolderRows.uses, "--class-folders")

    def __init__(self, pictures: FolderRows, *, words: Sequence[str], listed_in: Path) -> None:
        self._pictures = pictures.with_captions_or_without()
        self._words, self._listed_in = list(words), listed_in

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        found = self._pictures.read(row)
        label = _label(found.name)
        if label is None and not found.captions:
            raise LeftOutError("no label", found.name, "it lies in no folder of a class")
        return replace(found, label=label)

    def labels(self) -> Iterator[object]:
        """See `Rows.labels`."""
        return map(_label, self._pictures.names)

    def label_words(self) -> Sequence[str]:
        """The folders by name; those of other splits are among them, so that a class has one number in all."""
        return self._words

    def class_names(self) -> Sequence[str]:
        """See `Rows.class_names`."""
        return names_beside(self._listed_in)

    def passed_over(self) -> Sequence[LeftOutError]:
        """See `Rows.passed_over`."""
        return self._pictures.passed_over()

    def notes(self) -> Sequence[str]:
        """See `Rows.notes`."""
        return [f"{self._listed_in}: its folders are classes, {len(self._words)} of them ({some_names(self._words)})"]

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return [*self._pictures.identity(), self._words, list(self.class_names())]


def _label(name: str) -> str | None:
    first, separator, _ = name.partition(os.sep)
    return first if separator else None


def open_pictures(folder: Path, *, columns: TableColumns, splits: Sequence[str], classes: bool | None) -> list[Rows]:
    """The pictures of a folder.

    Args:
        columns: of the json files beside them.
        splits: those to take, of folders of classes.
        classes: whether the folders in it are classes; None: if no picture has a caption, and either labels are looked
            for, or captions are needed and there are several folders, and pictures in them alone.

    Raises:
        InputError: no picture, no folder of a class, a split that is not there, or several and none is named.
    """
    parts = split_folders(folder) if classes or (splits and classes is None) else []
    if not parts:
        if splits:
            chosen_splits([], splits, folder)  # which says that there are none
        pictures = FolderRows(folder, columns=columns)
        words = sorted({word for name in pictures.names if (word := _label(name)) is not None})
        if classes is None:
            classes = _look_like_classes(pictures, words, columns)
        if not classes:
            return [pictures]
        if not (parts := split_folders(folder)):
            if not words:
                raise InputError(f"{folder} holds no folder with pictures; a class is a folder of it")
            return [ClassFolderRows(pictures, words=words, listed_in=folder)]
    words = class_words(folder / part for part in parts)
    return [
        ClassFolderRows(FolderRows(folder / part, columns=columns), words=words, listed_in=folder)
        for part in chosen_splits(parts, splits, folder)
    ]


def _look_like_classes(pictures: FolderRows, words: Sequence[str], columns: TableColumns) -> bool:
    if columns.finds_label:
        return bool(words) and not pictures.has_captions()
    has_order = len(words) > 1 and all(map(_label, pictures.names))
    return columns.needs_captions and has_order and not pictures.has_captions()


def class_words(folders: Iterable[Path]) -> list[str]:
    """The folders in any of these that hold a picture, by name."""
    return sorted({name for folder in folders for name in _folders_in(folder) if _any_picture(folder / name)})


def split_folders(folder: Path) -> list[str]:
    """The folders of splits in a folder: they are called so, and hold pictures in folders but none themselves."""
    return [name for name in _folders_in(folder) if is_split_name(name) and _holds_classes(folder / name)]


def _holds_classes(folder: Path) -> bool:
    return not _holds_picture(folder) and any(_any_picture(folder / name) for name in _folders_in(folder))


def _folders_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))


def _holds_picture(folder: Path) -> bool:
    """Whether a picture lies in a folder itself."""
    with os.scandir(folder) as entries:
        return any(is_picture(entry.name) and not is_hidden(entry.name) for entry in entries)


def _any_picture(folder: Path) -> bool:
    """Whether a picture lies in a folder or below it."""
    return any(is_picture(name) and not is_hidden(name) for name in files_in(folder))
