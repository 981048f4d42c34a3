"""`clipx report`: reads a run, looks at pictures with its model if asked to, writes the page."""

from collections.abc import Callable, Sequence
from pathlib import Path

from clipx.pages import require_own_page, write_page
from clipx.report.recorded import read_run
from clipx.report.run_page import run_page

REPORT = "report.html"


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    most_pictures: int = 2000,
    on: Sequence[Path] = (),
    on_set: Callable[[str], None] = lambda _: None,
) -> Path:
    """Writes the report of a run.

    Args:
        folder: the run folder.
        out: the page; None means report.html in the run folder.
        most_pictures: of each evaluation set, for what needs the model; 0 leaves all of that out.
        on: folders of evaluation sets beside those of the run.
        on_set: told the name of each set before it is read.

    Returns:
        The path of the page.

    Raises:
        InputError: no run folder, or the page cannot be written without replacing something else.
    """
    run = read_run(folder)
    path = out if out is not None else folder / REPORT
    require_own_page(path)
    if not most_pictures:
        write_page(path, run_page(run))
        return path
    from clipx.report.pictures import pictures  # imports torch

    found = pictures(run, folders=on, most=most_pictures, on_set=on_set)
    write_page(path, run_page(run, parts=found.parts, sizes=found.sizes))
    return path
