"""`clipx average`: averages the weights of models, or goes from one towards others, and writes a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipx.average.options import AverageOptions, Take, read_alphas, read_weights, require_place
from clipx.cli.early import require_evaluation_set, require_model, require_outputs
from clipx.cli.output import FiguresFile, say, write_json
from clipx.errors import InputError
from clipx.printable import shown

if TYPE_CHECKING:
    from rich.table import Table


def average(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL", help="Models of one architecture.", show_default=False)
    ],
    *,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write, a MODEL again.", show_default=False)],
    weights: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="One for each MODEL, as 1,2,1; default: equal ones.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--with", metavar="START", help="Go from this model towards MODEL: (1 - A) START + A MODEL."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(metavar="A", help="How far: 0 is START, 1 is MODEL.")] = None,
    alphas: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="Try these, as 0,0.1,...,1, on the sets of --on, and keep the best."),
    ] = None,
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="Allow alphas outside 0 to 1.")] = False,
    greedy: Annotated[
        bool,
        typer.Option("--greedy", help="From the best MODEL down, take each in unless the score on --on falls."),
    ] = False,
    on: Annotated[
        list[Path],
        typer.Option(metavar="DATASET_DIR", help="Set to choose by, in CLIP_benchmark's layout; may be repeated."),
    ] = [],  # noqa: B006 (typer reads it and never changes it)
    take: Annotated[
        Take | None,
        typer.Option(help="Of runs that kept an average of their weights (ema): which to take; default: the average."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures or texts per forward pass.")] = 256,
    json_file: FiguresFile = None,
) -> None:
    """Average the weights of models: a soup of several, or a way from one model to its fine-tuned self.

    A set's score is its zero-shot accuracy, or where its dataset_type.txt says retrieval, recall at 10, the mean of
    both directions; sets count alike. Choose by sets on which you will not report.
    """
    if alpha is not None and alphas is not None:
        raise InputError("--alpha is one way to go, --alphas several to choose from; give one of the two")
    options = AverageOptions(
        models=tuple(models),
        weights=None if weights is None else read_weights(weights),
        start=start,
        alphas=read_alphas(alphas) if alphas is not None else () if alpha is None else (alpha,),
        extrapolate=extrapolate,
        greedy=greedy,
        on=tuple(on),
        take=take,
        batch_size=batch_size,
    )
    _require(options, to, json_file)
    from clipx.distributed.environment import overrule_environment

    overrule_environment()
    from clipx.average.run import average_models
    from clipx.distributed.collectives import rank
    from clipx.distributed.runtime import join_ranks

    with join_ranks() as (device, group):
        record = average_models(options, to, device=device, group=group, on_scores=_tell)
        if rank(group) > 0:
            return
    _print(record, to)
    if json_file is not None:
        write_json(json_file, record)


def _tell(name: str, scores: Mapping[str, float]) -> None:
    """One line on stderr for each evaluation, which may take minutes; the table comes at the end."""
    listed = ", ".join(f"{Path(folder).name} {score:.2%}" for folder, score in scores.items())
    typer.echo(shown(f"{name}: {listed}"), err=True)


def _require(options: AverageOptions, to: Path, json_file: Path | None) -> None:
    """Looks whether all that is named is there."""
    from clipx.export.folder import readable_errors

    require_outputs({"--json": json_file})
    with readable_errors(to):
        require_place(options, to)
    for path in (*options.models, *([options.start] if options.start else [])):
        if options.on and (path / "test" / "nshards.txt").is_file():
            raise InputError(f"{path} is an evaluation set and no model; give --on before each set")
        require_model(path)
    for folder in options.on:
        require_evaluation_set(folder)


def _print(record: dict[str, Any], to: Path) -> None:
    from rich.console import Console

    if (table := _table(record)) is not None:
        Console().print(table)
    if "alpha" in record:
        say(f"{to}: alpha {record['alpha']:g} from {record['start']['model']}")
    else:
        used = [f"{entry['model']} {entry['share']:.4g}" for entry in record["models"] if entry["share"]]
        say(f"{to}: {', '.join(used)}")


def _table(record: dict[str, Any]) -> "Table | None":
    """The scores of the alphas, or of the models alone and with those that were taken in; None without any."""
    from rich.table import Table
    from rich.text import Text

    if "alphas" in record:
        rows = record["alphas"]
        table = Table("alpha", *(_heading(name) for name in rows[0]["scores"]), "mean", "")
        for row in rows:
            kept = "kept" if row["alpha"] == record["alpha"] else ""
            figures = [*row["scores"].values(), row["mean"]]
            table.add_row(f"{row['alpha']:g}", *(f"{figure:.2%}" for figure in figures), kept)
        return table
    if "mean" not in record:
        return None
    rows = record["models"]
    table = Table("model", *(_heading(name) for name in rows[0]["scores"]), "mean with it", "")
    for row in rows:
        name, alone = Text(shown(row["model"])), [f"{figure:.2%}" for figure in row["scores"].values()]
        table.add_row(name, *alone, f"{row['mean_with_it']:.2%}", "taken" if row["taken"] else "")
    return table


def _heading(folder: str) -> str:
    return shown(Path(folder).name)
