"""Line charts: no peak is lost, gaps stay gaps, ticks are round numbers."""

import math
import re

import pytest

from clipx.pages import Extras, line_chart
from clipx.pages.axes import Axis, fitted, tick_label
from clipx.pages.line_chart import thinned


def chart(points: list[tuple[float, float]], **options: object) -> str:
    return line_chart({"": points}, title="t", x_label="x", y_label="y", **options)  # type: ignore[arg-type]


def paths(html: str) -> list[str]:
    return re.findall(r'class="line s0"[^>]* d="([^"]*)"', html)


def test_thousands_of_points_become_few_and_no_peak_is_lost() -> None:
    points = [(float(i), 1.0) for i in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    points[77_777] = (77_777.0, -9.0)
    few = thinned(points, 400, Axis(0, 100_000, 50, 450))
    assert len(few) <= 1600
    assert {points[0], points[54_321], points[77_777], points[-1]} <= set(few)
    assert few == sorted(few)
    assert len(chart(points)) < 40_000


def test_few_points_stay_all() -> None:
    points = [(float(i), float(i % 7)) for i in range(50)]
    assert thinned(points, 400, Axis(0, 49, 50, 450)) == points


def test_a_value_that_is_not_finite_breaks_the_line_and_is_counted() -> None:
    html = chart([(1, 1), (2, 2), (3, math.nan), (4, 4), (5, 5), (6, math.inf), (7, 3)])
    (line,) = paths(html)
    assert line.count("M") == 2
    assert "2 values not finite or beyond 1e100 are not shown." in html
    assert html.count("<circle") == 5  # also the one that stands alone


def test_a_logarithmic_axis_leaves_out_what_is_not_above_zero() -> None:
    html = chart([(1, 0.001), (2, 0), (3, 1000)], log_y=True)
    assert "1 value not finite, beyond 1e100 or not above 0 is not shown." in html
    assert [label for label in ("0.01", "1", "100") if f">{label}</text>" in html] == ["0.01", "1", "100"]


@pytest.mark.parametrize("points", [[], [(3.0, math.nan)]])
def test_without_values_the_chart_says_so(points: list[tuple[float, float]]) -> None:
    assert "no values" in chart(points)


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "values", [(1e308, -1e308, 1.0), (5e-324, 0.0), (1.0, 1 + 2.3e-16), (1e-100, 1e100), (1e-320, 1e300)]
)
def test_values_at_the_ends_of_what_a_number_can_be(values: tuple[float, ...], log_y: bool) -> None:
    html = chart([(float(i), value) for i, value in enumerate(values)], log_y=log_y)
    assert not re.search(r"\b(nan|inf)\b", html)
    assert html.count("<path") < 40


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-30, 1e30])
def test_one_value_alone_is_drawn(value: float) -> None:
    html = chart([(10, value)])
    assert html.count("<circle") == 1
    assert "nan" not in html
    assert chart([(10, value), (20, value)]).count("<circle") == 2


@pytest.mark.parametrize("low", [-1e6, -1.0, 0.0, 0.3, 1e-9, 99.0])
@pytest.mark.parametrize("extent", [1e-7, 0.5, 3.0, 1e5])
def test_ticks_are_within_the_axis_and_round(low: float, extent: float) -> None:
    axis = fitted([low, low + extent], start=0, end=100, log=False)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9
    assert all(axis.low - 1e-9 * extent <= tick <= axis.high + 1e-9 * extent for tick in ticks)
    assert -1 <= axis.at(low) <= axis.at(low + extent) <= 101


@pytest.mark.parametrize(("low", "high"), [(0.001, 5), (1, 40), (1e-8, 1e8), (20, 25)])
def test_a_logarithmic_axis_has_ticks(low: float, high: float) -> None:
    axis = fitted([low, high], start=0, end=100, log=True)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 10
    assert all(low * 0.9 <= tick <= high * 1.1 for tick in ticks)
    assert axis.at(math.sqrt(low * high)) == pytest.approx(50)


def test_labels_are_short_and_tell_ticks_apart() -> None:
    for ticks in ([0, 20_000, 40_000], [0, 0.0002, 0.0004], [1.25, 1.5], [1e6, 1.5e6], [0.25, 0.5]):
        labels = [tick_label(tick, ticks) for tick in ticks]
        assert len(set(labels)) == len(labels)
        assert all(len(label) <= 7 for label in labels)
    assert tick_label(20_000, [20_000]) == "20k"
    assert tick_label(2.5e30, [0, 2.5e30]) == "2.5e30"
    assert tick_label(0.00025, [0.00025]) == "2.5e-4"


def test_bands_marks_and_legend() -> None:
    lines = {"loss": [(1.0, 2.0), (2.0, 1.0)], "other": [(1.0, 3.0), (2.0, 3.0)]}
    extras = Extras(bands={"loss": [(1, 1.5, 2.5), (2, 0.5, 1.5)]}, marks=[(1.5, "restart"), (99, "outside")])
    html = line_chart(lines, title="t", x_label="x", y_label="y", extras=extras)
    assert html.count('class="band s0"') == 1
    assert "<title>restart</title>" in html
    assert "outside" not in html
    assert re.findall(r"</svg>(\w+)</li>", html) == ["loss", "other"]
    assert "legend" not in chart([(1, 2)])


def test_a_faint_series_stands_behind_in_grey() -> None:
    lines = {"median": [(1.0, 2.0), (2.0, 1.0)], "raw": [(1.0, 3.0), (2.0, 3.0)]}
    html = line_chart(lines, title="t", x_label="x", y_label="y", extras=Extras(faint=frozenset({"raw"})))
    assert html.index('class="faint"') < html.index('class="line s0"')
    assert html.count('class="line s7"') == 2  # the line, and its sign in the legend
