"""From a sample's bytes to a picture and its captions; owns Pillow's decoder and the caption key's small language.

A sample is a mapping from extension to bytes, as the tar members of one key hold it: {"jpg": ..., "txt": ...}.
Whatever is wrong with those bytes is an `UndecodableError`; nothing here reads files, so no I/O error is among them.
"""

import io
import json
from collections.abc import Mapping

from PIL import Image

# Without a list Pillow tries every plugin, and some of them start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "MPO")


class UndecodableError(ValueError):
    """The sample's bytes are no picture, or hold no caption; the message is one line that says why."""


def decode_image(data: bytes) -> Image.Image:
    """The picture as RGB, decoded in full.

    As in CLIP and open_clip, transparency is dropped, the first frame of an animation is taken, and EXIF orientation
    is ignored.

    Raises:
        UndecodableError: empty, truncated or corrupt data, a format not in `FORMATS`, or more pixels than twice
            Pillow's `Image.MAX_IMAGE_PIXELS` (a decompression bomb).
    """
    if not data:
        raise UndecodableError("picture of 0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=_available_formats()) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever malformed bytes led them to, not only OSError
        raise UndecodableError(f"picture of {len(data)} bytes: {_one_line(error)}") from error


def decode_captions(fields: Mapping[str, bytes], caption_key: str) -> list[str]:
    """All captions of a sample, in their order, blank ones left out.

    Args:
        fields: the sample's members by extension.
        caption_key: alternatives joined by `;`, the first that is present counts: an extension, whose whole text is
            one caption, or `json:NAME`, a string or list of strings in that json member.

    Returns:
        At least one caption, none of them blank.

    Raises:
        UndecodableError: no alternative is present, or the first that is holds no text.
    """
    for extension, name in alternatives(caption_key):
        if extension not in fields:
            continue
        found = _json_field(fields[extension], extension, name) if name else _text(fields[extension], extension)
        if found is not None:
            return _non_blank(found, f"{extension}:{name}" if name else extension)
    raise UndecodableError(f"no caption under {caption_key!r}; members: {', '.join(sorted(fields)) or 'none'}")


def first_present(fields: Mapping[str, bytes], keys: str) -> bytes | None:
    """The bytes of the first of `keys` (extensions joined by `;`) that the sample has, or None."""
    return next((fields[extension] for extension, _ in alternatives(keys) if extension in fields), None)


def alternatives(keys: str) -> list[tuple[str, str]]:
    """(extension, field or "") of each alternative in `keys`; `.JPG` is `jpg`, as the members' extensions are lower."""
    pairs = [alternative.strip().partition(":") for alternative in keys.split(";")]
    return [(extension.removeprefix(".").lower(), name) for extension, _, name in pairs]


def _available_formats() -> list[str]:
    """`FORMATS` less those that this Pillow was built without; asking for one it lacks is a KeyError there."""
    if not Image.OPEN.keys() >= set(FORMATS):
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _text(data: bytes, extension: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UndecodableError(f"caption under {extension!r} is not UTF-8: {_one_line(error)}") from error


def _json_field(data: bytes, extension: str, name: str) -> object:
    """The field's value, None where the member lacks it or holds null (img2dataset writes null for no caption)."""
    try:
        record = json.loads(_text(data, extension))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UndecodableError(f"member {extension!r} is not JSON: {_one_line(error)}") from error
    if not isinstance(record, dict):
        raise UndecodableError(f"member {extension!r} holds a JSON {type(record).__name__}, not an object")
    return record.get(name)


def _non_blank(found: object, key: str) -> list[str]:
    captions: list[str] = []
    for caption in found if isinstance(found, list) else [found]:
        if not isinstance(caption, str):
            raise UndecodableError(f"caption under {key!r} is a {type(caption).__name__}, not a string")
        if caption.strip():
            captions.append(caption)
    if not captions:
        raise UndecodableError(f"caption under {key!r} is empty")
    return captions


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
