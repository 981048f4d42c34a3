"""Pictures in a page, and contact sheets of them."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipx.pages.html import Html, text

if TYPE_CHECKING:
    from PIL import Image

_QUALITY = 82  # of a thumbnail's JPEG: no visible damage at some 8 kB each


@dataclass(frozen=True)
class Cell:
    """One picture of a contact sheet with what is said of it."""

    picture: Html | None
    """From `picture`; None says that there is none."""
    title: str
    lines: Sequence[str] = ()
    """Below the title, one line each."""
    right: bool | None = None
    """Whether it is a right or a wrong one; None says nothing of that."""


def picture(image: "Image.Image", *, alt: str, size: int = 192) -> Html:
    """A thumbnail within the page itself; what is transparent stands on white.

    Args:
        alt: what it shows, for those who do not see it.
        size: pixels of its longer side at most.
    """
    from PIL import Image

    image = image.copy()
    image.thumbnail((size, size))
    if image.mode not in ("RGB", "L"):
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_QUALITY, optimize=True)
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    width, height = image.size
    return Html(f'<img src="data:image/jpeg;base64,{encoded}" alt="{text(alt)}" width="{width}" height="{height}">')


def contact_sheet(cells: Iterable[Cell]) -> Html:
    """Pictures in a grid, each with its title and lines; right and wrong ones say so in words and by their frame."""
    return Html('<div class="sheet">\n' + "\n".join(map(_cell, cells)) + "\n</div>")


def _cell(cell: Cell) -> str:
    verdict = {None: "", True: "right", False: "wrong"}[cell.right]
    said = f'<p class="verdict {verdict}">{verdict}</p>' if verdict else ""
    shown = cell.picture if cell.picture is not None else Html('<span class="quiet">no picture</span>')
    lines = "".join(f"<p>{text(line)}</p>" for line in cell.lines)
    return (
        f'<figure class="cell {verdict}"><div class="frame">{shown}</div>'
        f"{said}<b>{text(cell.title)}</b>{lines}</figure>"
    )
