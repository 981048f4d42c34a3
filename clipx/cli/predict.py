"""`clipx predict`: what a fitted model says of the rows of a table."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipx.cli.data_options import ImageFolder
from clipx.cli.early import is_alone, require_model, require_writable
from clipx.cli.model import ModelArgument, WeightsOption
from clipx.cli.output import say
from clipx.cli.progress import progress_bar

if TYPE_CHECKING:
    from clipx.data.rows.row import Rows
    from clipx.use.predict import Predicted


def predict(
    model: ModelArgument,
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="Rows with the columns that the model predicts from: CSV, TSV, JSON lines, parquet, arrow, a folder, "
            "shards.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Predictions: a .csv or .parquet file.", show_default=False)
    ],
    absent: Annotated[
        bool, typer.Option("--absent", help="Columns of inputs may be missing: they are absent from all rows.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of every class and label.")
    ] = False,
    image_folder: ImageFolder = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 128,
    weights: WeightsOption = None,
) -> None:
    """Predict what a model of `clipx fit` was trained to predict, for every row of a table.

    Writes a line for each row, in their order: its number or its key, for each target the value, for a class its
    probability, which inputs were there, and why there is no prediction if there is none. Cells that are empty and
    pictures whose file is not there are absent; a row with an unreadable picture or cell is predicted by nobody. Works
    under torchrun and accelerate launch, on all ranks: equal tables give equal bytes, whatever the ranks.
    """
    require_writable(out, option="--out")
    require_model(model)
    opening = partial(_open, model, table, out, absent=absent, image_folder=image_folder)
    found = opening() if is_alone() else None
    from clipx.distributed.environment import overrule_environment

    overrule_environment()
    from clipx.distributed.collectives import raise_on_all_ranks, rank, rank0_first
    from clipx.distributed.runtime import join_ranks
    from clipx.pretrained import load_fitted
    from clipx.use.predict import PredictOptions, predict_table

    with join_ranks() as (device, group):
        is_first = rank(group) == 0
        # rank 0 indexes shards; the others read that index
        rows, key = rank0_first(opening, group) if found is None else found
        with raise_on_all_ranks(group):
            fitted = load_fitted(model, device=device, weights=weights)
        options = PredictOptions(batch_size=batch_size, probabilities=probabilities, key=key)
        with progress_bar("rows", shown=is_first) as show:
            predicted = predict_table(fitted, rows, out, options, group=group, on_progress=show)
    if is_first:
        _print(predicted, table, out)


def _open(model: Path, table: str, out: Path, *, absent: bool, image_folder: Path | None) -> "tuple[Rows, str | None]":
    """The rows, and the column of their keys; whatever is wrong is said before a model is loaded."""
    from clipx.pretrained.input_columns import fitted_config
    from clipx.use.opened_table import open_table
    from clipx.use.own_predictions import require_own

    require_own(out)
    return open_table(table, fitted_config(model), absent=absent, image_folder=image_folder)


def _print(predicted: "Predicted", table: str, out: Path) -> None:
    say(f"{out}: predictions for {predicted.num_rows - predicted.num_null:,} rows of {table}")
    for name, count in predicted.absent.items():
        if count:
            say(f"{count:,} of them without {name}")
    if not predicted.num_null:
        return
    say(f"{predicted.num_null:,} rows without a prediction:")
    for row, reason in predicted.problems:
        say(f"  row {row}: {reason}")
    if predicted.num_null > len(predicted.problems):
        say("  ...; all of them stand in the file, each with its problem")
