"""Pages for a browser: one file each, without JavaScript, legible in light and dark, with nothing loaded elsewhere.

`page` puts parts together; `text`, `table`, `section`, `picture`, `contact_sheet` and the charts make them;
`write_page` writes a page where nothing of somebody else's stands. What strangers wrote (captions, names, paths)
becomes markup in `text` alone, through which every part passes its strings.
"""

from clipx.pages.files import require_own_page, write_page
from clipx.pages.heat_map import heat_map
from clipx.pages.html import Html, joined, page, paragraph, section, text
from clipx.pages.line_chart import Extras, line_chart
from clipx.pages.point_map import Point, picture_map, point_map
from clipx.pages.sheet import Cell, contact_sheet, picture
from clipx.pages.table import facts, table

__all__ = [
    "Cell",
    "Extras",
    "Html",
    "Point",
    "contact_sheet",
    "facts",
    "heat_map",
    "joined",
    "line_chart",
    "page",
    "paragraph",
    "picture",
    "picture_map",
    "point_map",
    "require_own_page",
    "section",
    "table",
    "text",
    "write_page",
]
