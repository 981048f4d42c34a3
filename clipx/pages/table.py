"""Tables, and figures that stand out."""

import re
from collections.abc import Iterable, Mapping, Sequence

from clipx.pages.html import Html, markup, text

_NUMBER = re.compile(r"[-+]?[\d,.]+(e[-+]?\d+)?( ?(%|s|h|min|kB|MB|GB|GiB|px|points))?\Z")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> Html:
    """A table that scrolls where the screen is narrow; columns of numbers stand to the right.

    Args:
        columns: their headings.
        rows: as many cells each, the first one names the row; a cell is `Html`, or anything, which becomes text.
    """
    cells = [[markup(_shown_number(cell)) for cell in row] for row in rows]
    numeric = [
        i > 0
        and any(row[i] for row in cells)
        and all(not row[i] or _NUMBER.match(row[i]) is not None for row in cells if i < len(row))
        for i in range(len(columns))
    ]
    align = [' class="n"' if is_number else "" for is_number in numeric]
    head = "".join(f'<th scope="col"{align[i]}>{text(name)}</th>' for i, name in enumerate(columns))
    body = "\n".join(_row(row, align) for row in cells)
    label = f"<caption>{text(caption)}</caption>" if caption else ""
    # a region that scrolls must be reached by the keyboard, too
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption or "table")}"><table>{label}'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def facts(values: Mapping[str, object]) -> Html:
    """A few figures by name, large."""
    cells = "".join(
        f"<div><dt>{text(name)}</dt><dd>{markup(_shown_number(value))}</dd></div>" for name, value in values.items()
    )
    return Html(f'<dl class="facts">{cells}</dl>')


def _row(cells: Sequence[Html], align: Sequence[str]) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{first}</th>' + "".join(
        f"<td{align[i]}>{cell}</td>" for i, cell in enumerate(others, 1)
    ) + "</tr>"  # fmt: skip


def _shown_number(value: object) -> object:
    """A number with separators, at most four digits behind the point; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
