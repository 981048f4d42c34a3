"""What `clipx zeroshot` shows and stores of its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipx.evaluate.options import Evaluation
from clipx.evaluate.result_files import ModelName
from clipx.evaluate.suite import Mean, SetResult, mean_of
from clipx.printable import shown

Results = Sequence[tuple[ModelName, SetResult]]
_NAME, _FIGURE = 24, 26  # columns of the terminal that a name and a figure with its interval take


def print_results(found: Results, *, suite: str | None) -> None:
    """Prints a table for each kind of evaluation, and for a suite one of main figures with their mean."""
    models = _by_model(found)
    console = Console()
    of_tasks = [(model, one) for model, result in found for one in result.by_task()]
    for names in dict.fromkeys(tuple(result.evaluation.metrics) for _, result in of_tasks):
        below = _NAME + _FIGURE * len(names) > console.width
        table = Table()
        table.add_column("data set", overflow="fold")
        if len(models) > 1:
            table.add_column("model", overflow="fold")
        for name in names:
            table.add_column(name.replace("_", " ").replace("@", " @"))
        for model, result in of_tasks:
            if tuple(result.evaluation.metrics) == names:
                of_model = [Text(shown(model.pretrained))] if len(models) > 1 else []
                cells = [_cell(result.evaluation, name, below=below) for name in names]
                table.add_row(Text(shown(result.place.title)), *of_model, *cells)
        console.print(table)
    if suite is not None:
        console.print(_main_figures(models, suite))


def as_json(found: Results, *, as_suite: bool) -> dict[str, Any]:
    """What --json writes: of one model the metrics of each set by its name.

    Args:
        as_suite: by model, with intervals, main figures and their mean.
    """
    if not as_suite:
        return {result.place.key: _figures(result, derived=False) for _, result in found}
    return {
        model: {
            "sets": {result.place.key: _of_set(result) for result in results},
            "mean": {"figure": (mean := mean_of(results)).figure, "interval": mean.interval, "sets": len(results)},
        }
        for model, results in _by_model(found).items()
    }


def _figures(result: SetResult, *, derived: bool) -> dict[str, float]:
    """Those of all evaluations of a set; what was derived for it only if asked for."""
    figures = result.evaluation.metrics | (result.evaluation.derived if derived else {})
    for one in result.further:
        figures = figures | one.metrics | one.derived
    return figures


def _of_set(result: SetResult) -> dict[str, Any]:
    intervals = {
        name: interval
        for one in (result.evaluation, *result.further)
        for name in one.metrics
        if (interval := one.interval(name)) is not None
    }
    return {
        "title": result.place.title,
        "metrics": _figures(result, derived=True),
        "intervals": intervals,
        "main_metric": result.main_metric,
        "main_figure": result.main_figure,
    }


def _main_figures(models: Mapping[str, Sequence[SetResult]], suite: str) -> Table:
    """A row for each set, a column for each model, and the mean below."""
    first = next(iter(models.values()))
    table = Table(title=Text(shown(suite)), show_footer=True)
    table.add_column("data set", footer=Text(f"mean of {len(first)} sets"), overflow="fold")
    table.add_column("main figure")
    for model, results in models.items():
        mean: Mean = mean_of(results)
        footer = Text(_percent(mean.figure, mean.interval))
        table.add_column(Text(shown(model)) if len(models) > 1 else "", footer=footer)
    for rows in zip(*models.values(), strict=True):
        cells = [Text(_percent(row.main_figure, row.evaluation.interval(row.main_metric))) for row in rows]
        table.add_row(Text(shown(rows[0].place.title)), Text(shown(rows[0].main_metric)), *cells)
    return table


def _by_model(found: Results) -> dict[str, list[SetResult]]:
    models: dict[str, list[SetResult]] = {}
    for model, result in found:
        models.setdefault(model.pretrained, []).append(result)
    return models


def _cell(evaluation: Evaluation, name: str, *, below: bool) -> Text:
    figure = _percent(evaluation.metrics[name], evaluation.interval(name), between="\n" if below else " ")
    deviation = evaluation.derived.get(f"{name}_std")  # between seeds
    return Text(figure if deviation is None else f"{figure} ± {100 * deviation:.1f}")


def _percent(figure: float, interval: tuple[float, float] | None, *, between: str = " ") -> str:
    """A share in per cent, with its interval."""
    text = f"{figure:.2%}"
    return text if interval is None else f"{text}{between}({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
