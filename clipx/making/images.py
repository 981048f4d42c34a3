"""The images that go into shards: as they are, or encoded anew."""

import io
from dataclasses import dataclass

from PIL import Image

from clipx.data.decode import UndecodableError, decode_image, open_image

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif"}
_DEFAULT_QUALITY = 95
_JPEG_SIDE = 65_500  # pixels; libjpeg writes no longer ones


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What is done to images."""

    size: int | None = None
    """Longest that the short side may be; a longer one is reduced to it. None leaves it as it is."""
    quality: int | None = None
    """JPEG quality, 1 to 100, of every image; None encodes anew only those that `size` reduces, with 95."""
    verify: bool = True
    """Decode every image, so that none gets into a shard that cannot be read."""

    @property
    def changes_images(self) -> bool:
        """Whether any image may get other bytes."""
        return self.size is not None or self.quality is not None


def stored_image(data: bytes, options: ImageOptions) -> tuple[str, bytes]:
    """The extension and the bytes to store; the extension tells the image's format, whatever its file was called.

    Raises:
        UndecodableError: it is no image, or a broken one.
    """
    decoded = decode_image(data) if options.verify else None  # first: it bounds what a picture may take
    extension, size = image_header(data)
    too_large = options.size is not None and min(size) > options.size
    if too_large or options.quality is not None:
        return "jpg", _encode(decode_image(data) if decoded is None else decoded, options)
    return extension, data


def image_header(data: bytes) -> tuple[str, tuple[int, int]]:
    """The extension that fits the format, and (width, height); no pixel is decoded.

    Raises:
        UndecodableError: it is no image.
    """
    with open_image(data) as image:
        name = image.format or ""
        return _EXTENSIONS.get(name, name.lower()), image.size


def _encode(image: Image.Image, options: ImageOptions) -> bytes:
    if options.size is not None and min(image.size) > options.size:
        factor = options.size / min(image.size)
        width, height = (max(options.size, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if max(image.size) > _JPEG_SIDE:
        raise UndecodableError(
            f"picture of {image.width} x {image.height} pixels; a JPEG has at most {_JPEG_SIDE} a side"
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=options.quality or _DEFAULT_QUALITY)
    return buffer.getvalue()
