"""`clipx report` and `clipx compare`: runs as pages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from clipx.cli.early import require_evaluation_set
from clipx.cli.output import say
from clipx.errors import InputError
from clipx.printable import shown

PageFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The page.", show_default="report.html in RUN")
]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    out: PageFile = None,
    pictures: Annotated[
        bool,
        typer.Option(help="Show what the newest checkpoint makes of the evaluation sets; --no-pictures is faster."),
    ] = True,
    most_pictures: Annotated[
        int, typer.Option(min=1, help="Pictures of a set that are looked at, spread evenly over it.")
    ] = 2000,
    on: Annotated[
        list[Path] | None,
        typer.Option(metavar="DATASET_DIR", help="A further evaluation set to show; repeatable.", show_default=False),
    ] = None,
) -> None:
    """Write one HTML file about a run: curves, evaluations, mistakes with pictures, trouble, config.

    It needs no network and no JavaScript, and can be made while the run trains.
    """
    for folder in on or ():
        if not pictures:
            raise InputError(f"--on {folder} shows pictures of a set; leave out --no-pictures")
        require_evaluation_set(folder)
    from clipx.report.write import write_report

    path = write_report(
        run,
        out,
        most_pictures=most_pictures if pictures else 0,
        on=on or (),
        on_set=lambda name: typer.echo(f"looking at {name}", err=True),
    )
    say(f"{path}")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Two run folders or more.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also write a page, with the curves.", show_default=False),
    ] = None,
) -> None:
    """Compare runs: final figures and what differs in configs and versions; with --out also the curves, as a page.

    Differences are to the first RUN.
    """
    from clipx.pages import require_own_page
    from clipx.report.compare import config_rows, final_rows, read_runs, version_rows, write_comparison

    if out is not None:
        require_own_page(out)
    recorded = read_runs(runs)
    names = [run.name for run in recorded]
    _print("figure", names, final_rows(recorded))
    if rows := config_rows(recorded):
        _print("config", names, rows)
    if rows := version_rows(recorded):
        _print("version", names, rows)
    if out is not None:
        write_comparison(recorded, out)
        say(f"{out}")


def _print(what: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column(what, overflow="fold"), *(Column(Text(shown(name)), overflow="fold") for name in names))
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    Console().print(table)
