"""What was found as files: JSON and CSV for other programs, a page of pictures for people."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx.errors import InputError
from clipx.pages import Cell, Html, contact_sheet, page, picture, section, text, write_page
from clipx.printable import printable, redact, redacted
from clipx.storage.folders import write_atomically
from clipx.storage.own_csv import require_csv_of
from clipx.use.pictures import Pictures

if TYPE_CHECKING:
    from clipx.use.find import Finder, Found
    from clipx.use.queries import Query

_COLUMNS = ("query", "rank", "score", "row", "key", "name", "caption")
_CAPTION = 200  # characters of a caption on a page
Results = Sequence[tuple["Query", Sequence["Found"]]]


def require_own_csv(path: Path) -> None:
    """Refuses to replace what is no CSV of rows that were found.

    Raises:
        InputError: such a file is there.
    """
    require_csv_of(path, _COLUMNS, what="rows that were found")


def write_csv(path: Path, results: Results) -> None:
    """Writes a line for each row that was found.

    Raises:
        InputError: it cannot be written, or would replace something else.
    """
    require_own_csv(path)
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for query, found in results:
        for row in found:
            values = {"query": query.shown, **row.as_json()}
            writer.writerow([redact(str(values[name] if values[name] is not None else "")) for name in _COLUMNS])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise InputError(f"--csv {path}: cannot be written: {error.strerror or error}") from error


def as_json(finder: "Finder", results: Results) -> dict[str, Any]:
    """What was found, as plain values."""
    return redacted(
        {
            "embeddings": str(finder.embeddings.folder),
            "by": finder.by,
            "exact": finder.index is None,
            "results": [
                {"query": query.shown, "kind": query.kind, "hits": [row.as_json() for row in found]}
                for query, found in results
            ],
        }
    )


def write_found_page(path: Path, finder: "Finder", results: Results) -> None:
    """Writes a page with a contact sheet for each query; a grey cell where a picture is not there any more.

    Raises:
        InputError: it cannot be written, or would replace something else.
    """
    pictures = Pictures(finder.embeddings)
    parts = []
    for query, found in results:
        cells = []
        for row in found:
            image = pictures.thumbnail(row.row)
            cells.append(cell(row, None if image is None else picture(image, alt=alt(row))))
        parts.append(section(f"{query.kind}: {query.shown}", contact_sheet(cells)))
    if pictures.problem:
        parts.insert(0, Html(f'<p class="quiet">{text(f"No pictures: {pictures.problem}")}</p>'))
    write_page(path, page("Search", parts, subtitle=subtitle(finder)))


def subtitle(finder: "Finder") -> str:
    """What was searched, and how, in a line."""
    what = {"image": "pictures", "text": "texts"}[finder.by]
    how = "exactly" if finder.index is None else f"approximately, by {finder.index.path.name}"
    return f"{finder.num_rows:,} {what} of {finder.embeddings.folder}, searched {how}"


def cell(row: "Found", shown: Html | None) -> Cell:
    """A row of a contact sheet."""
    lines = [f"cosine {row.score:.4f}"]
    if row.caption:
        lines.append(row.caption if len(row.caption) <= _CAPTION else f"{row.caption[:_CAPTION]}...")
    return Cell(shown, f"{row.rank}. {row.key}", lines)


def alt(row: "Found") -> str:
    """What a picture is said to show."""
    return printable(row.caption or row.key)
