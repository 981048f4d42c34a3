"""`clipx search`: looks through what `clipx embed` made, in the terminal or by a page on this machine."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipx.cli.early import require_outputs
from clipx.cli.model import WeightsOption
from clipx.cli.output import FiguresFile, say, write_json
from clipx.errors import InputError
from clipx.printable import shown

if TYPE_CHECKING:
    from clipx.use.embeddings import Column, Embeddings
    from clipx.use.find import Finder
    from clipx.use.found_files import Results


_CAPTION = 120  # characters of a caption in a table


def search(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `clipx embed` wrote.", show_default=False)
    ],
    queries: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY",
            help="A text, a picture (file or URL), or a key or name of the set; text:..., picture:..., key:... and "
            "row:N say which is meant.",
            show_default=False,
        ),
    ] = None,
    *,
    k: Annotated[
        int | None,
        typer.Option("-k", min=1, help="Rows to find for each query. Default: 20, or all.", show_default=False),
    ] = None,
    by: Annotated[
        Literal["image", "text"] | None,
        typer.Option(help="What is searched. Default: pictures, or texts where there are no pictures."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model that made DIR, if it lies elsewhere now.", show_default=False),
    ] = None,
    weights: WeightsOption = None,
    index: Annotated[
        str | None,
        typer.Option(
            metavar="faiss:FACTORY",
            help="Search approximately by an index of faiss, e.g. faiss:IVF256,Flat; built once and kept in DIR.",
            show_default=False,
        ),
    ] = None,
    json_file: FiguresFile = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write a line for each row found here.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page of the pictures found.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve a page to search with, and JSON.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0 takes a free one.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Of --serve: who may come. Anything but this machine lets others in, unasked.")
    ] = "127.0.0.1",
) -> None:
    """Find the pictures or texts that are most like a text, a picture or a row of the set.

    Exact, unless --index is given: every row is compared, and of equal scores the earlier row comes first. A row that
    is itself the query is not among those found.
    """
    from clipx.use.embeddings import open_embeddings

    factory = _factory_of(index)
    embeddings = open_embeddings(folder)
    files = {"--json": json_file, "--csv": csv_file, "--html": html_file}
    require_outputs(files)
    if serve:
        if queries or any(files.values()):
            raise InputError("--serve takes no QUERY and writes no file; ask on its page")
        kinds = [by] if by or factory else list(embeddings.manifest.columns)
        _serve(embeddings, (host, port), lambda: _finders(embeddings, kinds, factory, model, weights))
        return
    from clipx.pages.files import require_own_page
    from clipx.use.found_files import require_own_csv
    from clipx.use.queries import parse_queries

    if csv_file is not None:
        require_own_csv(csv_file)
    if html_file is not None:
        require_own_page(html_file)
    parsed = parse_queries(embeddings, queries or [])
    [finder] = _finders(embeddings, [by], factory, model, weights)
    results = list(zip(parsed, finder.find(parsed, k=k), strict=True))
    print_found(finder, results)
    _write(finder, results, json_file, csv_file, html_file)


def _finders(
    embeddings: "Embeddings",
    kinds: "Sequence[Column | None]",
    factory: str | None,
    model: str | None,
    weights: Literal["average", "trained"] | None,
) -> "list[Finder]":
    from clipx.distributed.environment import overrule_environment

    overrule_environment()
    import torch

    from clipx.use.find import Finder
    from clipx.use.queries import QueryEncoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = QueryEncoder(embeddings, model=model, weights=weights, device=device)
    finders = [Finder(embeddings, encoder, by=kind, factory=factory, device=device) for kind in kinds]
    for finder in finders:
        if finder.index is not None and finder.index.is_new:
            say(f"built {finder.index.path}; later searches use it")
    return finders


def _factory_of(index: str | None) -> str | None:
    """The factory of an --index option.

    Raises:
        InputError: it is not of the form faiss:FACTORY.
    """
    if index is None:
        return None
    kind, _, factory = index.partition(":")
    if kind != "faiss" or not factory.strip():
        raise InputError(f"--index {index}: write faiss:FACTORY, e.g. faiss:IVF256,Flat")
    return factory.strip()


def _write(
    finder: "Finder", results: "Results", json_file: Path | None, csv_file: Path | None, html_file: Path | None
) -> None:
    from clipx.use.found_files import as_json, write_csv, write_found_page

    if json_file is not None:
        write_json(json_file, as_json(finder, results))
    if csv_file is not None:
        write_csv(csv_file, results)
    if html_file is not None:
        write_found_page(html_file, finder, results)


def print_found(finder: "Finder", results: "Results") -> None:
    """Prints a table for each query."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    for query, found in results:
        has_captions = any(row.caption for row in found)
        columns = [Column("", justify="right"), Column("cosine", justify="right"), Column("key", overflow="fold")]
        columns += [Column("name", overflow="fold")] if any(row.name != row.key for row in found) else []
        columns += [Column("caption", overflow="fold")] if has_captions else []
        table = Table(*columns, title=Text(shown(f"{query.kind}: {query.shown}")), title_justify="left")
        for row in found:
            cells = [str(row.rank), f"{row.score:.4f}", row.key]
            cells += [row.name] if any(other.name != other.key for other in found) else []
            cells += [_cut(row.caption or "")] if has_captions else []
            table.add_row(*(Text(shown(cell)) for cell in cells))
        Console().print(table)
    if finder.index is not None:
        say(f"approximate, by {finder.index.path.name}: a better one may have been overlooked; the cosines are exact")


def _cut(caption: str) -> str:
    return caption if len(caption) <= _CAPTION else f"{caption[:_CAPTION]}..."


def _serve(embeddings: "Embeddings", address: tuple[str, int], searched: Callable[[], "list[Finder]"]) -> None:
    """Serves until Ctrl-C; the port is taken before the model is loaded, which takes longer."""
    from clipx.use.serve import SearchServer

    with closing(SearchServer(embeddings, *address)) as server:
        server.search_with(*searched())
        say(f"{server.url}  Ctrl-C ends it")
        if not server.is_private:
            say("anybody who reaches this machine can search and see the pictures; --host 127.0.0.1 keeps them out")
        server.run()
    say("ended")
