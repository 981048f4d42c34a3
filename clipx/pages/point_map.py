"""Points on a plane as a drawing within the page, coloured by group."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipx.pages.axes import fitted
from clipx.pages.html import Html, text
from clipx.pages.style import NUM_SERIES

_SIDE = 620
_MARGIN = 14
_PICTURE = 7.0  # width of a small picture in percent of the map's


@dataclass(frozen=True)
class Point:
    """A place on the plane."""

    place: tuple[float, float]
    """x and y."""
    group: int
    """Its index among the groups; -1 for one without a group."""
    name: str = ""
    """Shown where the pointer rests on it."""


def point_map(points: Sequence[Point], groups: Sequence[str], *, title: str, note: str = "") -> Html:
    """A map with a legend; both directions have one scale, as distances mean something there.

    Args:
        groups: at most as many as there are colours of series.
    """
    assert len(groups) <= NUM_SERIES, f"{len(groups)} groups and {NUM_SERIES} colours"
    x_axis = fitted([point.place[0] for point in points], start=_MARGIN, end=_SIDE - _MARGIN, log=False, padded=False)
    y_axis = fitted([point.place[1] for point in points], start=0, end=1, log=False, padded=False)
    scale = (_SIDE - 2 * _MARGIN) / max(x_axis.high - x_axis.low, y_axis.high - y_axis.low)
    height = 2 * _MARGIN + scale * (y_axis.high - y_axis.low)
    dots = "".join(
        f'<circle class="dot {_colour(point.group)}" cx="{_MARGIN + scale * (point.place[0] - x_axis.low):.1f}" '
        f'cy="{height - _MARGIN - scale * (point.place[1] - y_axis.low):.1f}" r="3.5">'
        + (f"<title>{text(point.name)}</title>" if point.name else "")
        + "</circle>"
        for point in points
    )
    shown = [*enumerate(groups), *([(-1, "others")] if groups and any(point.group < 0 for point in points) else [])]
    items = "".join(
        f'<li><svg viewBox="0 0 16 10" class="short" aria-hidden="true">'
        f'<circle class="{_colour(i)}" cx="8" cy="5" r="4.5"/></svg>{text(name)}</li>'
        for i, name in shown
    )
    return Html(
        f'<figure><figcaption>{text(title)}</figcaption><svg viewBox="0 0 {_SIDE} {height:.0f}" role="img" '
        f'aria-label="{text(title)}"><rect class="cell" width="{_SIDE}" height="{height:.0f}" rx="6"/>{dots}</svg>'
        f'<ul class="legend">{items}</ul>' + (f'<p class="note">{text(note)}</p>' if note else "") + "</figure>"
    )


def picture_map(pictures: Sequence[tuple[tuple[float, float], Html]], *, title: str) -> Html:
    """Pictures on a plane, small ones: each one's x and y, and what `picture` made."""
    xs, ys = ([place[axis] for place, _ in pictures] for axis in (0, 1))
    left, top = min(xs, default=0.0), max(ys, default=0.0)
    extent = max(max(xs, default=0.0) - left, top - min(ys, default=0.0)) or 1.0
    height = (top - min(ys, default=0.0)) / extent * (100 - _PICTURE) + _PICTURE
    placed = "".join(
        f'<span style="left:{(x - left) / extent * (100 - _PICTURE):.2f}%;'
        f'top:{(top - y) / extent * (100 - _PICTURE) / height * 100:.2f}%">{image}</span>'
        for (x, y), image in pictures
    )
    return Html(
        f'<figure><figcaption>{text(title)}</figcaption><div class="map" style="aspect-ratio:100/{height:.1f}">'
        f"{placed}</div></figure>"
    )


def _colour(group: int) -> str:
    return f"s{group}" if group >= 0 else "rest"
