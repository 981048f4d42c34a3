"""A matrix as a drawing within the page: the darker, the more."""

from collections.abc import Sequence

from clipx.pages.html import Html, text

_CELL, _SMALLEST = 22, 3
_WIDTH = 840
_LABELLED = 60  # names are legible for so many rows
_LETTERS = 18


def heat_map(values: Sequence[Sequence[float]], names: Sequence[str], *, title: str, rows: str, columns: str) -> Html:
    """A square matrix with the same names along both sides; what is 0 has the colour of an empty cell.

    Args:
        values: shares from 0 to 1, row by row.
        names: of rows and columns; left out where there are too many to be read.
        rows: what a row is, e.g. "is".
        columns: what a column is, e.g. "taken for".
    """
    count = len(names)
    side = max(_SMALLEST, min(_CELL, _WIDTH // max(count, 1)))
    labelled = count <= _LABELLED
    margin = 10 + 7 * min(_LETTERS, max(map(len, names), default=0)) if labelled else 20
    size = margin + count * side + 2
    parts = [f'<rect class="cell" x="{margin}" y="{margin}" width="{count * side}" height="{count * side}"/>']
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value > 0:
                what = f"{names[i]} {columns} {names[j]}: {value:.1%}"
                shade = min(1.0, 0.12 + 0.88 * value)
                parts.append(
                    f'<rect class="heat" x="{margin + j * side}" y="{margin + i * side}" width="{side}" '
                    f'height="{side}" fill-opacity="{shade:.2f}"><title>{text(what)}</title></rect>'
                )
    for i, name in enumerate(names if labelled else ()):
        middle = margin + (i + 0.5) * side
        label = text(name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…")
        parts.append(f'<text x="{margin - 5}" y="{middle}" dy=".35em" text-anchor="end">{label}</text>')
        parts.append(f'<text transform="translate({middle} {margin - 5}) rotate(-90)" dy=".35em">{label}</text>')
    if not labelled:
        parts.append(f'<text x="{margin}" y="13">{text(columns)} →</text>')
        parts.append(f'<text transform="translate(13 {size}) rotate(-90)">{text(rows)} →</text>')
    return Html(
        f'<figure><figcaption>{text(title)}</figcaption><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{text(title)}"><svg viewBox="0 0 {size} {size}" role="img" aria-label="{text(title)}" '
        f'style="width:{size}px;max-width:none">{"".join(parts)}</svg></div>'
        f'<p class="note">Rows: {text(rows)}; columns: {text(columns)}; shares of a row.</p></figure>'
    )
