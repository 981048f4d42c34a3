"""Line charts as drawings within the page, in the page's colours."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from clipx.pages.axes import Axis, fitted, is_shown, tick_label
from clipx.pages.html import Html, text
from clipx.pages.style import NUM_SERIES

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 24, 40
_MOST_DOTS = 16  # points of a series that are few enough to be seen one by one

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a chart shows beside its lines."""

    bands: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)
    """By name of a series: x, the lower and the upper end there, as of an interval."""
    marks: Sequence[tuple[float, str]] = ()
    """Places on the horizontal axis, and what happened there."""
    faint: frozenset[str] = frozenset()
    """Names of series that stand behind the others, pale: what the others sum up."""


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    extras: Extras | None = None,
) -> Html:
    """A chart with a line for each series, a legend if there are several, and nothing that asks for JavaScript.

    Where more points stand than a column of pixels can show, it keeps the first, the least, the largest and the last of
    each column, so that no peak is lost. A value that is not finite, beyond 1e100, or not above 0 on a logarithmic
    axis, breaks its line and is counted below the chart.

    Args:
        series: points (x, y) by name, in the order of x.
        extras: bands and marks.
    """
    extras = extras or Extras()
    shown = {name: _shown(points, log_x=log_x, log_y=log_y) for name, points in series.items()}
    ends = [band for bands in extras.bands.values() for band in bands]
    flat = [point for points in shown.values() for point in points if point is not None]
    x_axis = fitted(
        [x for x, _ in flat] + [x for x, _, _ in ends], start=_LEFT, end=_WIDTH - _RIGHT, log=log_x, padded=False
    )
    y_values = [y for _, y in flat] + [y for _, *both in ends for y in both]
    y_axis = fitted(y_values, start=_HEIGHT - _BOTTOM, end=_TOP, log=log_y)
    indexes = _indexes(series, extras.faint)
    drawn = [_frame(x_axis, y_axis, x_label, y_label), *_marks(extras.marks, x_axis)]
    for name in sorted(shown, key=lambda name: name not in extras.faint):  # those first, behind the others
        drawn += _band(extras.bands.get(name, ()), x_axis, y_axis, indexes[name])
        line = "".join(_series(name, shown[name], x_axis, y_axis, indexes[name]))
        drawn.append(f'<g class="faint">{line}</g>' if name in extras.faint else line)
    if not flat:
        drawn.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">no values</text>')
    left_out = sum(len(points) for points in series.values()) - len(flat)
    return Html(
        f"<figure><figcaption>{text(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(_described(title, shown))}" '
        'class="plot">'
        + "".join(drawn)
        + "</svg>"
        + (_legend(indexes) if len(series) > 1 else "")
        + (f'<p class="note">{_left_out(left_out, log=log_x or log_y)}</p>' if left_out else "")
        + "</figure>"
    )


def _indexes(names: Iterable[str], faint: frozenset[str]) -> dict[str, int]:
    """The colour and dashes of each series: the last, which is grey, if it is faint."""
    strong = count()
    return {name: NUM_SERIES - 1 if name in faint else next(strong) for name in names}


def _legend(indexes: Mapping[str, int]) -> Html:
    """The colours of series by their names."""
    items = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden="true"><path class="line {_colour(i)}"{_dashes(i)} d="M1 6H25"/>'
        f"</svg>{text(name)}</li>"
        for name, i in indexes.items()
    )
    return Html(f'<ul class="legend">{items}</ul>')


def thinned(points: Sequence[tuple[float, float]], columns: int, axis: Axis) -> list[tuple[float, float]]:
    """At most four points for each of the axis' `columns`: the first, the least, the largest and the last there."""
    if len(points) <= 4 * columns:
        return list(points)
    width = (axis.end - axis.start) / columns
    groups: dict[int, list[int]] = {}
    for i, (x, _) in enumerate(points):
        groups.setdefault(int((axis.at(x) - axis.start) / width), []).append(i)
    kept: set[int] = set()
    for group in groups.values():
        kept |= {group[0], group[-1]}
        kept |= {min(group, key=lambda i: points[i][1]), max(group, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def _shown(points: Points, *, log_x: bool, log_y: bool) -> list[tuple[float, float] | None]:
    """The points; None where one cannot be shown."""
    return [(x, y) if is_shown(x, log=log_x) and is_shown(y, log=log_y) else None for x, y in points]


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> str:
    """Grid, ticks and labels."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<text x="0" y="13">{text(y_label)}</text>']
    parts.append(f'<text x="{right}" y="{_HEIGHT - 6}" text-anchor="end">{text(x_label)}</text>')
    ticks = y_axis.ticks()
    for tick in ticks:
        y = _number(y_axis.at(tick))
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy=".35em" text-anchor="end">{tick_label(tick, ticks)}</text>')
    ticks = x_axis.ticks(6)
    for tick in ticks:
        x = x_axis.at(tick)
        parts.append(f'<path class="axis" d="M{_number(x)} {bottom}v4"/>')
        anchor = "end" if x > right - 12 else "middle"
        place = min(x, right) if anchor == "middle" else right
        parts.append(
            f'<text x="{_number(place)}" y="{bottom + 17}" text-anchor="{anchor}">{tick_label(tick, ticks)}</text>'
        )
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    return "".join(parts)


def _marks(marks: Sequence[tuple[float, str]], x_axis: Axis) -> Iterator[str]:
    for x, what in marks:
        if x_axis.low <= x <= x_axis.high:
            place = _number(x_axis.at(x))
            yield f'<path class="mark" d="M{place} {_TOP}V{_HEIGHT - _BOTTOM}"><title>{text(what)}</title></path>'


def _band(band: Sequence[tuple[float, float, float]], x_axis: Axis, y_axis: Axis, index: int) -> Iterator[str]:
    ends = [
        (x, low, high)
        for x, low, high in band
        if is_shown(x, log=x_axis.log) and is_shown(low, log=y_axis.log) and is_shown(high, log=y_axis.log)
    ]
    if len(ends) == 1:  # an area of no width would not be seen
        x, low, high = ends[0]
        yield (
            f'<path class="line {_colour(index)}" d="M{_number(x_axis.at(x))} {_number(y_axis.at(low))}'
            f'V{_number(y_axis.at(high))}"/>'
        )
    elif ends:
        above = [f"{_number(x_axis.at(x))} {_number(y_axis.at(high))}" for x, _, high in ends]
        below = [f"{_number(x_axis.at(x))} {_number(y_axis.at(low))}" for x, low, _ in reversed(ends)]
        yield f'<path class="band {_colour(index)}" d="M{"L".join(above + below)}Z"/>'


def _series(
    name: str, points: Sequence[tuple[float, float] | None], x_axis: Axis, y_axis: Axis, index: int
) -> Iterator[str]:
    """The line, in pieces where values are missing, and dots if they are few or stand alone."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            pieces.append([])
        else:
            pieces[-1].append(point)
    columns = int(x_axis.end - x_axis.start)
    lines = [
        "L".join(f"{_number(x_axis.at(x))} {_number(y_axis.at(y))}" for x, y in thinned(piece, columns, x_axis))
        for piece in pieces
        if len(piece) > 1
    ]
    if lines:
        yield f'<path class="line {_colour(index)}"{_dashes(index)} d="M{"M".join(lines)}"/>'
    alone = [piece[0] for piece in pieces if len(piece) == 1]
    flat = [point for piece in pieces for point in piece]
    for x, y in flat if len(flat) <= _MOST_DOTS else alone:
        what = f"{name}: {x:g}, {y:.5g}" if name else f"{x:g}, {y:.5g}"
        yield (
            f'<circle class="dot {_colour(index)}" cx="{_number(x_axis.at(x))}" cy="{_number(y_axis.at(y))}" r="3.2">'
            f"<title>{text(what)}</title></circle>"
        )


def _colour(index: int) -> str:
    return f"s{index % NUM_SERIES}"


def _dashes(index: int) -> str:
    """Series beyond the number of colours are told apart by their dashes."""
    turn = index // NUM_SERIES
    return f' stroke-dasharray="{8 / turn:g} 4"' if turn else ""


def _described(title: str, shown: Mapping[str, Sequence[tuple[float, float] | None]]) -> str:
    """What the chart says, for those who do not see it."""
    parts = []
    for name, points in shown.items():
        there = [point for point in points if point is not None]
        if there:
            parts.append(f"{name + ' ' if name else ''}from {there[0][1]:.4g} to {there[-1][1]:.4g}")
    return f"{title}: {'; '.join(parts)}" if parts else f"{title}: no values"


def _left_out(count: int, *, log: bool) -> str:
    kind = "not finite, beyond 1e100 or not above 0" if log else "not finite or beyond 1e100"
    return f"{count:,} {'value' if count == 1 else 'values'} {kind} {'is' if count == 1 else 'are'} not shown."


def _number(value: float) -> str:
    """Pixels, as short as they can be seen."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"
