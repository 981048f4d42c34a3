"""Markup that is safe, and the frame of a page."""

import re
from collections.abc import Iterable, Sequence
from html import escape

from clipx import __version__
from clipx.pages.style import STYLE
from clipx.printable import shown

MARK = '<meta name="generator" content="clipx '
"""Stands in the head of every page; by it clipx knows its own."""

_NOTHING_ELSEWHERE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_OWN_SERVER = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'"
)


class Html(str):
    """Markup that may stand in a page as it is."""

    __slots__ = ()


def text(value: object) -> Html:
    """The value as text of a page: nothing in it is markup, secrets are left out, control characters are visible."""
    return Html(escape(shown(value)))


def markup(value: object) -> Html:
    """Markup as it is; anything else as `text`."""
    return value if isinstance(value, Html) else text(value)


def joined(parts: Iterable[object], separator: str = "") -> Html:
    """The parts behind each other; what is no markup becomes text, `separator` too."""
    return Html(text(separator).join(map(markup, parts)))


def paragraph(value: object, *, quiet: bool = False) -> Html:
    """One paragraph; a quiet one is small print."""
    return Html(f'<p class="quiet">{markup(value)}</p>' if quiet else f"<p>{markup(value)}</p>")


def anchor(heading: str) -> str:
    """The name by which a link finds the section with this heading."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"


def section(heading: str, *parts: object, level: int = 2) -> Html:
    """Parts under a heading; `level` 3 stands within a section of level 2."""
    name = f' id="{anchor(heading)}"' if level == 2 else ""
    body = "\n".join(map(markup, parts))
    return Html(f"<section{name}>\n<h{level}>{text(heading)}</h{level}>\n{body}\n</section>")


def page(
    title: str, body: Sequence[Html], *, subtitle: str = "", contents: Sequence[str] = (), script: str = ""
) -> str:
    """A whole page.

    Args:
        title: its heading, and its name in the browser.
        body: its parts, in order.
        subtitle: a line below the heading.
        contents: headings of sections in `body` that get a link at the top.
        script: JavaScript of clipx's own, only for a page that a server of clipx's own sends: such a page may talk to
            that server. Without it the browser itself is told to load nothing and to run nothing.
    """
    policy = _OWN_SERVER if script else _NOTHING_ELSEWHERE
    links = "".join(f'<li><a href="#{anchor(heading)}">{text(heading)}</a></li>' for heading in contents)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'{MARK}{__version__}">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',  # otherwise the browser asks a server for one
            f"<title>{text(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            f"<header>\n<h1>{text(title)}</h1>",
            f'<p class="subtitle">{text(subtitle)}</p>' if subtitle else "",
            f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if links else "",
            "</header>",
            "<main>",
            *map(markup, body),
            "</main>",
            f"<script>{script}</script>" if script else "",
            "</body>",
            "</html>",
            "",
        ]
    )
