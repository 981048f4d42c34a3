"""JSON files that list images, each with all of its captions: COCO's, and Karpathy's splits of COCO and Flickr."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipx.data.rows.picture_keys import picture_key
from clipx.data.rows.row import LeftOutError, Row, Rows
from clipx.data.rows.values import Record, captions_of, plain
from clipx.errors import InputError, some_names
from clipx.storage.files import file_state


class CocoRows(Rows):
    """The images of a COCO captions file in its order, each with all of its captions (arXiv 1504.00325).

    Images that only captions name follow as rows without a picture. Of images of one id, as joined files have them,
    nobody can say whose the captions are.

    Raises:
        InputError: no captions in it.
    """

    uses = ("--image-folder",)

    def __init__(
        self,
        path: Path,
        content: Mapping[str, list[dict[str, object]]],
        *,
        image_folder: Path,
        needs_captions: bool = True,
    ) -> None:
        self._path, self._image_folder, self._needs_captions = path, image_folder, needs_captions
        captions: defaultdict[object, list[object]] = defaultdict(list)
        try:
            self._images: list[dict[str, object]] = content["images"]
            for annotation in content["annotations"]:
                captions[annotation["image_id"]].append(annotation["caption"])
            self._captions = [captions_of(captions[image["id"]]) for image in self._images]
        except (KeyError, TypeError) as error:
            lacks = f"no {error} in it" if isinstance(error, KeyError) else "it is of another form"
            raise InputError(
                f"{path} is not COCO's captions file: {lacks}; give the one with captions (captions_*.json), or a list "
                "of objects"
            ) from error
        self._names: defaultdict[object, set[object]] = defaultdict(set)
        for image in self._images:
            self._names[image["id"]].add(image.get("file_name"))
        self._without_image = [image_id for image_id in captions if image_id not in self._names]

    def __len__(self) -> int:
        return len(self._images) + len(self._without_image)

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        if row >= len(self._images):
            image_id = self._without_image[row - len(self._images)]
            raise LeftOutError("no picture", f"image_id {image_id}", "it has captions, but is not among the images")
        record = dict(self._images[row])
        name = record.get("file_name")
        if not isinstance(name, str):
            raise LeftOutError("no picture", f"image_id {record['id']}")
        if len(names := self._names[record["id"]]) > 1:
            others = some_names(sorted(str(other) for other in names if other != name))
            raise LeftOutError("unreadable row", name, f"its id {record['id']!r} is also that of {others}")
        if self._needs_captions and not self._captions[row]:
            raise LeftOutError("no caption", name)
        record = {"image_id": record.pop("id"), **record}
        return Row(name, self._image_folder / name, self._captions[row], plain(record))

    def picture_keys(self) -> Iterator[bytes | None]:
        """See `Rows.picture_keys`."""
        names: list[object] = [image.get("file_name") for image in self._images]
        folder = str(self._image_folder.absolute())
        return (picture_key(name, folder) for name in names + [None] * len(self._without_image))

    def files(self) -> Iterator[str]:
        """See `Rows.files`."""
        names = (image.get("file_name") for image in self._images)
        return (os.path.join(self._image_folder, name) for name in names if isinstance(name, str))

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return [str(self._path), *file_state(str(self._path)), str(self._image_folder)]


class KarpathyRows(Rows):
    """The images of Karpathy's json (dataset_coco.json, dataset_flickr30k.json), each with all of its sentences.

    Args:
        splits: those to take; none given, all.

    Raises:
        InputError: it has none of these splits.
    """

    uses = ("--image-folder",)

    def __init__(
        self,
        path: Path,
        images: Sequence[Record],
        *,
        image_folder: Path,
        splits: Sequence[str],
        needs_captions: bool = True,
    ) -> None:
        self._path, self._image_folder, self._splits = path, image_folder, list(splits)
        self._needs_captions = needs_captions
        self._counts = Counter(str(image.get("split")) for image in images)
        for split in splits:
            if split not in self._counts:
                raise InputError(f"{path} has no split {split!r}; its splits are {some_names(list(self._counts))}")
        self._images = [image for image in images if not splits or str(image.get("split")) in splits]

    @staticmethod
    def fits(content: object) -> bool:
        """Whether the content of a JSON file is of this kind."""
        images = content.get("images") if isinstance(content, dict) else None
        return (
            isinstance(images, list)
            and bool(images)
            and all(isinstance(image, dict) and isinstance(image.get("sentences"), list) for image in images)
        )

    def __len__(self) -> int:
        return len(self._images)

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        image: Mapping[str, Any] = self._images[row]
        name = self._name(image)
        if name is None:
            raise LeftOutError("no picture", f"{self._path} image {row}")
        captions = captions_of(
            [sentence.get("raw") for sentence in image["sentences"] if isinstance(sentence, Mapping)]
        )
        if self._needs_captions and not captions:
            raise LeftOutError("no caption", name)
        record = {key: value for key, value in image.items() if key not in ("sentences", "sentids")}
        return Row(name, self._image_folder / name, captions, plain(record))

    @staticmethod
    def _name(image: Record) -> str | None:
        """The path of an image: COCO's have a folder, Flickr's do not."""
        folder, name = image.get("filepath"), image.get("filename")
        if not isinstance(name, str) or not name:
            return None
        return f"{folder}/{name}" if isinstance(folder, str) and folder else name

    def picture_keys(self) -> Iterator[bytes | None]:
        """See `Rows.picture_keys`."""
        folder = str(self._image_folder.absolute())
        return (picture_key(self._name(image), folder) for image in self._images)

    def files(self) -> Iterator[str]:
        """See `Rows.files`."""
        names = map(self._name, self._images)
        return (os.path.join(self._image_folder, name) for name in names if name is not None)

    def notes(self) -> Sequence[str]:
        """See `Rows.notes`."""
        if self._splits or len(self._counts) < 2:
            return ()
        counts = ", ".join(f"{split} {count:,}" for split, count in self._counts.most_common(10))
        return [f"{self._path}: all of its splits ({counts}; json:split); --split takes one"]

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return [str(self._path), *file_state(str(self._path)), str(self._image_folder), self._splits]
