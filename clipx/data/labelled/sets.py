"""What an evaluation reads: pictures with classes or captions, in one order, whatever they are stored as."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

DEFAULT_TEMPLATES = ("a photo of a {c}.",)
"""Of a set that has none of its own."""


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An image that is not decoded yet."""

    name: str
    """What a person finds it by, for messages: a file, or shard and key."""
    data: bytes


@dataclass(frozen=True, kw_only=True)
class LabelledImage(EncodedImage):
    """An image and its class."""

    label: int


@dataclass(frozen=True, kw_only=True)
class MultiLabelImage(EncodedImage):
    """An image and the classes of what it shows."""

    labels: tuple[int, ...]
    """Ascending, each once; perhaps none."""


@dataclass(frozen=True, kw_only=True)
class CaptionedImage(EncodedImage):
    """An image and all captions that describe it."""

    captions: tuple[str, ...]


ImageT_co = TypeVar("ImageT_co", bound=EncodedImage, covariant=True)


class ImageSource(Protocol[ImageT_co]):
    """Where the images of a set come from."""

    def images(self) -> Iterator[ImageT_co]:
        """Every image; the same ones in the same order each time, and on every rank."""

    def identity(self) -> list[object]:
        """Changes when an image, its label or the order does; plain values that JSON keeps."""


@dataclass(frozen=True, kw_only=True)
class LabelledSet(Generic[ImageT_co]):
    """What all sets have."""

    name: str
    """Of its folder or file; with the part that is read in brackets, if that is not the one that was asked for."""
    split: str | None
    """The part that is read, by the name that it has there; None for a set without parts."""
    source: ImageSource[ImageT_co]
    """Reads its images."""

    def images(self) -> Iterator[ImageT_co]:
        """Every image, read as it is asked for, in an order that does not change.

        Raises:
            InputError: an image or what is known of it is missing or wrong, or there is none.
        """
        return self.source.images()

    def identity(self) -> str:
        """32 hexadecimal digits that change when an image, its label or the order does; no image is read for it.

        Raises:
            InputError: a file cannot be asked for its size and time.
        """
        content = json.dumps([type(self).__name__, self.source.identity()])
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ClassificationSet(LabelledSet[LabelledImage]):
    """Images of one class each."""

    class_names: tuple[str, ...]
    """A label is a place in it."""
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    """Prompts with {c} where the class goes."""


@dataclass(frozen=True, kw_only=True)
class MultiLabelSet(LabelledSet[MultiLabelImage]):
    """Images of any number of classes."""

    class_names: tuple[str, ...]
    """A label is a place in it."""
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    """Prompts with {c} where the class goes."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSet(LabelledSet[CaptionedImage]):
    """Images with captions."""


AnySet = ClassificationSet | MultiLabelSet | RetrievalSet
