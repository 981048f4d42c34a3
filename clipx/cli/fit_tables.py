"""What `clipx fit` shows: what was guessed, and what came of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx.cli.output import say
from clipx.printable import shown

if TYPE_CHECKING:
    from clipx.config.fit import FitConfig
    from clipx.fitting.guess import Guess


def print_guess(guess: "Guess", folder: Path) -> None:
    """Prints what was decided, and why."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clipx.fitting.guessed_file import FILE, at

    table = Table("guessed", "", "because", box=None, header_style="bold", pad_edge=False)
    for key, reason in guess.reasons.items():
        table.add_row(Text(shown(key)), Text(shown(_value(at(guess.tree, key)))), Text(shown(reason)))
    Console().print(table)
    say(f"the whole config: {folder / FILE}")


def _value(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, dict):
        return ", ".join(str(item) for item in value.values())
    return str(value)


def print_scores(config: "FitConfig") -> None:
    """Prints what the model of a run is worth on held-out rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from clipx.fitting.figures import read_figures

    figures = read_figures(config)
    modalities = config.modalities
    alone = len(modalities) == 2  # then what is left without one is the other one
    names = {modality: _NAMES[modality] for modality in modalities}
    # in the order of what is left: the picture alone is the model without the text
    less = (modalities[::-1] if alone else modalities) if len(modalities) > 1 else ()
    others = {modality: next((name for name in names if name != modality), modality) for modality in less}
    titles = [f"{names[others[each]]} alone" if alone else f"without {names[each]}" for each in less]
    last = ("all inputs", "all rows") if less else ("model",)
    columns = [Column(title, justify="right") for title in ("trivial", *titles, *last)]
    # without lines between the columns, so that three kinds of input fit into 80 characters
    table = Table(
        *(Column("target", overflow="fold"), Column("figure", no_wrap=True), *columns),
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title=f"rows that training did not see, step {figures.step}",
    )
    for row in figures.rows:
        values = [row.trivial, *(row.less[each] for each in less), *([row.complete] if less else []), row.all]
        is_first = row.figure == next(each.figure for each in figures.rows if each.target == row.target)
        table.add_row(Text(shown(row.target)) if is_first else "", row.figure, *map(_number, values))
    Console().print(table)
    say("trivial: the most frequent class, labels as they are frequent, the mean")
    if less:
        what = "alone" if alone else "without"
        say(f"{what}, all inputs: rows in which none is absent; {what}: this model, with other inputs taken away")


_NAMES = {"image": "picture", "text": "text", "table": "table"}


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"  # prices are no powers of ten
