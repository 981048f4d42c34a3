"""Images in folders: each with its caption beside it, or listed in COCO's json."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from clipx.errors import InputError
from clipx.prepare.rows import LeftOutError, Row, TableColumns, captions_of, plain, read_image
from clipx.storage.files import file_state

_EXTENSIONS = frozenset(["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ppm"])


class FolderRows:
    """The images of a folder and of those below it, in the order of their names.

    `NAME.txt` beside `NAME.jpg` is its caption; `NAME.json` holds further fields, and the captions if there is no text
    file: those of `columns`, or one of a usual name.

    Raises:
        InputError: no image.
    """

    block_rows = 1

    def __init__(self, folder: Path, *, columns: TableColumns) -> None:
        self._folder, self._columns = folder, columns
        self._names = list(_image_names(folder))
        if not self._names:
            raise InputError(
                f"{folder} holds neither pictures nor a table, shards or a saved data set; name what it is"
            )

    def __len__(self) -> int:
        return len(self._names)

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        name = self._names[row]
        path = self._folder / name
        record = _json(path.with_suffix(".json"), name)
        try:
            captions = captions_of([path.with_suffix(".txt").read_text(encoding="utf-8")])
        except FileNotFoundError:
            captions = self._captions_in(record, name) if record else []
        except UnicodeDecodeError as error:
            raise LeftOutError("no caption", name, f"not UTF-8: {error}") from error
        if not captions:
            raise LeftOutError("no caption", name, "no NAME.txt or NAME.json beside it has one")
        return Row(name, read_image(path, name), captions, plain({"file_name": name, **record}))

    def _captions_in(self, record: dict[str, object], name: str) -> list[str]:
        """The captions of the json file, which leave the record."""
        try:
            keys = self._columns.caption_names(list(record), name)
        except InputError as error:
            raise LeftOutError("no caption", name, str(error)) from error
        return captions_of([record.pop(key, None) for key in keys])

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        names = hashlib.sha256("\0".join(self._names).encode("utf-8", "surrogateescape"))
        return [str(self._folder), len(self._names), names.hexdigest(), asdict(self._columns)]


def _image_names(folder: Path) -> Iterator[str]:
    """Paths of the images below `folder`, relative to it, sorted."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            stem, _, extension = name.rpartition(".")
            if stem and extension.lower() in _EXTENSIONS:
                yield os.path.relpath(os.path.join(parent, name), folder)


def _json(path: Path, name: str) -> dict[str, object]:
    """The object in a file, empty if there is no file."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LeftOutError("no caption", name, f"{path.name} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise LeftOutError("no caption", name, f"{path.name} holds no JSON object")
    return record


class CocoRows:
    """The images of a COCO captions file in its order, each with all of its captions (arXiv 1504.00325).

    Raises:
        InputError: no captions in it.
    """

    block_rows = 1

    def __init__(self, path: Path, content: Mapping[str, list[dict[str, object]]], *, image_folder: Path) -> None:
        self._path, self._image_folder = path, image_folder
        captions: defaultdict[object, list[object]] = defaultdict(list)
        try:
            self._images = content["images"]
            for annotation in content["annotations"]:
                captions[annotation["image_id"]].append(annotation["caption"])
            self._captions = [captions_of(captions[image["id"]]) for image in self._images]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path} is not COCO's captions file: no {error} in it; give the one with captions (captions_*.json)"
            ) from error

    def __len__(self) -> int:
        return len(self._images)

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        record = dict(self._images[row])
        name = str(record.get("file_name"))
        if not self._captions[row]:
            raise LeftOutError("no caption", name)
        image = read_image(self._image_folder / name, name)
        return Row(name, image, self._captions[row], plain({"image_id": record.pop("id"), **record}))

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return [str(self._path), *file_state(str(self._path)), str(self._image_folder)]
