"""Encoded pictures of a set as thumbnails of a page."""

from clipx.data.decode import UndecodableError, decode_image
from clipx.data.labelled import EncodedImage
from clipx.pages import Html, picture


def thumbnail(image: EncodedImage, *, size: int = 192) -> Html | None:
    """The picture within the page; None if it cannot be decoded."""
    try:
        decoded = decode_image(image.data)
    except UndecodableError:
        return None
    return picture(decoded, alt=image.name, size=size)
