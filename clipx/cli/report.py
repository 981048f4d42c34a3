"""`clipx report` and `clipx compare`: runs as pages."""

from pathlib import Path
from typing import Annotated

import typer

from clipx.cli.output import say

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
    from clipx.report.write import write_report

    path = write_report(
        run,
        out,
        most_pictures=most_pictures if pictures else 0,
        on=on or (),
        on_set=lambda name: typer.echo(f"looking at {name}", err=True),
    )
    say(f"{path}")
