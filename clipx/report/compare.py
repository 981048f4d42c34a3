"""`clipx compare`: several runs side by side, as a page and as rows for a terminal."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from clipx.config.changes import changes_between
from clipx.errors import InputError
from clipx.pages import Html, line_chart, page, paragraph, section, table, write_page
from clipx.report.curves import SMOOTHED_FROM, smoothed, wide
from clipx.report.metric_names import is_less, is_share, label, main_metric, series, unit, written
from clipx.report.recorded import Recorded, read_run
from clipx.report.run_page import pace, spent, status_word, steps
from clipx.report.setup import shown

_CURVES = {
    "loss": ("Loss", "loss"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "logit_scale": ("Logit scale", "multiplier of the similarities"),
    "samples_per_s": ("Speed", "pairs per second"),
    "lr": ("Learning rate", "lr"),
    "image_cosine": ("How alike pictures are", "mean cosine of two"),
    "text_cosine": ("How alike texts are", "mean cosine of two"),
    "peak_memory_gib": ("Memory, peak", "GiB"),
}
_PLAIN = {"logit_scale", "lr", "peak_memory_gib"}  # smooth by themselves
_OVER = {"step": "step", "samples_seen": "pairs seen"}


@dataclass(frozen=True)
class Figure:
    """One figure of all runs."""

    name: str
    values: Sequence[float | None]
    """In the order of the runs; None where a run has none."""
    write: Callable[[float], str]
    """How a value is written."""
    write_difference: Callable[[float], str]

    def cells(self) -> list[str]:
        """Each run's value, with the difference to the first run's behind it."""
        first = self.values[0]
        cells = []
        for i, value in enumerate(self.values):
            cell = "" if value is None else self.write(value)
            if i and value is not None and first is not None:
                cell += f" ({self.write_difference(value - first)})"
            cells.append(cell)
        return cells


def read_runs(folders: Sequence[Path]) -> list[Recorded]:
    """Reads runs, and names them so that no two have one name.

    Raises:
        InputError: fewer than two, one twice, or one is no run folder.
    """
    if len(folders) < 2:
        raise InputError(f"{folders[0] if folders else 'nothing'}: a comparison needs two runs or more; name another")
    places = [folder.resolve() for folder in folders]
    if twice := next((folder for i, folder in enumerate(folders) if places[i] in places[:i]), None):
        raise InputError(f"{twice} is named twice; name each run once")
    runs = [read_run(folder) for folder in folders]
    names = _names([folder.absolute() for folder in folders])
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def write_comparison(runs: Sequence[Recorded], path: Path) -> None:
    """Writes the page.

    Raises:
        InputError: it cannot be written without replacing something else.
    """
    write_page(path, comparison_page(runs))


def comparison_page(runs: Sequence[Recorded]) -> str:
    """The page: final figures, curves by steps and by pairs seen, evaluations, what differs in configs and versions."""
    columns = ("figure", *(run.name for run in runs))
    note = f"In brackets: the difference to {runs[0].name}."
    body = [
        section(
            "Figures", table(columns, [[row[0], *row[1:]] for row in final_rows(runs)]), paragraph(note, quiet=True)
        ),
        section("Curves by step", _curves(runs, "step")),
        section("Curves by pairs seen", _curves(runs, "samples_seen")),
        section("Evaluations", _evaluations(runs)),
        section("What differs in the configs", _differences(runs, config_rows(runs), "key")),
        section("What differs in the versions", _differences(runs, version_rows(runs), "library")),
        paragraph(f"Written by clipx at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.", quiet=True),
    ]
    contents = [
        *("Figures", "Curves by step", "Curves by pairs seen", "Evaluations"),
        *("What differs in the configs", "What differs in the versions"),
    ]
    subtitle = ", ".join(str(run.folder) for run in runs)
    return page(" against ".join(run.name for run in runs), body, subtitle=subtitle, contents=contents)


def final_rows(runs: Sequence[Recorded]) -> list[list[str]]:
    """A row for each figure: its name, and every run's value with the difference to the first run's."""
    rows = [["status", *map(status_word, runs)], ["steps", *map(steps, runs)]]
    numbers = [
        Figure("pairs seen", [run.last("samples_seen") for run in runs], _count, lambda d: f"{d:+,.0f}"),
        Figure("loss", [run.last("loss") for run in runs], _short, lambda d: f"{d:+.4g}"),
        *_final_scores(runs),
        Figure("pairs per second, median", [pace(run) for run in runs], _count, lambda d: f"{d:+,.0f}"),
        Figure("skipped steps", [run.last("skipped_steps") for run in runs], _count, lambda d: f"{d:+,.0f}"),
        Figure("bad samples", [float(len(run.quarantine)) for run in runs], _count, lambda d: f"{d:+,.0f}"),
        Figure("loss spikes", [float(len(run.rollbacks)) for run in runs], _count, lambda d: f"{d:+,.0f}"),
    ]
    rows += [[figure.name, *figure.cells()] for figure in numbers if any(v is not None for v in figure.values)]
    return [*rows, ["training", *map(spent, runs)]]


def config_rows(runs: Sequence[Recorded]) -> list[list[str]]:
    """A row for each key in which a config differs from another, but for `run_dir`: the key, and every run's value."""
    configs = [run.config for run in runs]
    base = next((config for config in configs if config is not None), None)
    if base is None:
        return []
    changes = [{} if config is None else changes_between(base, config) for config in configs]
    before = {key: old for of_run in changes for key, (old, _) in of_run.items() if key != "run_dir"}
    return [
        [
            key,
            *(
                "" if config is None else shown(of_run[key][1] if key in of_run else old)
                for config, of_run in zip(configs, changes, strict=True)
            ),
        ]
        for key, old in before.items()
    ]


def version_rows(runs: Sequence[Recorded]) -> list[list[str]]:
    """A row for each library whose version differs."""
    names = dict.fromkeys(name for run in runs for name in run.versions)
    rows = [[name, *(str(run.versions.get(name, "")) for run in runs)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _final_scores(runs: Sequence[Recorded]) -> list[Figure]:
    figures = []
    for name in dict.fromkeys(name for run in runs for name in run.evaluations):
        results = [run.evaluations.get(name) for run in runs]
        metrics = dict.fromkeys(
            metric for result in results if result for metric in result[-1].scores if not is_less(metric)
        )
        for metric in metrics:
            values = [result[-1].scores.get(metric) if result else None for result in results]
            change = (lambda d: f"{100 * d:+.2f}") if is_share(metric) else (lambda d: f"{d:+.4g}")
            figures.append(Figure(f"{name}, {label(metric)}", values, partial(written, metric), change))
    return figures


def _curves(runs: Sequence[Recorded], over: str) -> Html:
    charts = []
    for figure, (title, y_label) in _CURVES.items():
        lines = {run.name: _line(run, figure, over) for run in runs}
        if any(lines.values()):
            log_y = figure in ("loss", "grad_norm") and wide(y for points in lines.values() for _, y in points)
            charts.append(line_chart(lines, title=title, x_label=_OVER[over], y_label=y_label, log_y=log_y))
    if not charts:
        return paragraph("None of the runs has figures yet.")
    note = f"Loss, gradient norm, speed and likeness: running medians of a run with {SMOOTHED_FROM} rows or more."
    return Html(f'<div class="charts">{"".join(charts)}</div>{paragraph(note, quiet=True)}')


def _line(run: Recorded, figure: str, over: str) -> list[tuple[float, float]]:
    points = run.points(figure, over)
    return points if figure in _PLAIN else smoothed(points)[0] or points


def _evaluations(runs: Sequence[Recorded]) -> Html:
    charts = []
    for name in dict.fromkeys(name for run in runs for name in run.evaluations):
        first = next(run.evaluations[name] for run in runs if name in run.evaluations)
        metric = main_metric(first[-1].scores)
        for over, axis in _OVER.items() if metric is not None else ():
            assert metric is not None
            lines = {run.name: _scored(run, name, metric, over) for run in runs}
            charts.append(line_chart(lines, title=f"{name}, {label(metric)}", x_label=axis, y_label=unit(metric)))
    if not charts:
        return paragraph("None of the runs has been evaluated yet.")
    return Html(f'<div class="charts">{"".join(charts)}</div>')


def _scored(run: Recorded, name: str, metric: str, over: str) -> list[tuple[float, float]]:
    points = series(run.evaluations.get(name, ()), metric)
    if over == "step":
        return points
    seen = run.points("samples_seen")
    return [(_at(seen, step), score) for step, score in points] if seen else []


def _at(points: Sequence[tuple[float, float]], x: float) -> float:
    """What stands at `x` on the line from 0 through the points, for no row need be of the step of an evaluation."""
    i = min(bisect_left(points, (x, -math.inf)), len(points) - 1)
    (before, low), (after, high) = points[i - 1] if i else (0.0, 0.0), points[i]
    return low + (high - low) * (x - before) / (after - before) if after > before else high


def _differences(runs: Sequence[Recorded], rows: Sequence[Sequence[str]], what: str) -> Html:
    unknown = [run.name for run in runs if run.config is None] if what == "key" else []
    told = paragraph(f"Their configs cannot be read: {', '.join(unknown)}.") if unknown else Html("")
    if not rows:
        return Html(f"{told}{paragraph('Nothing.')}")
    return Html(f"{told}{table((what, *(run.name for run in runs)), rows)}")


def _names(places: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return list(map(str, places))


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float) -> str:
    return f"{value:.4g}"
