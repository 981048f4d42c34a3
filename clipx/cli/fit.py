"""`clipx fit`: from a table to a model that predicts some of its columns."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipx.cli.config_files import is_override
from clipx.cli.early import require_folder, require_inputs
from clipx.cli.fit_tables import print_guess, print_scores
from clipx.cli.output import say
from clipx.errors import InputError

if TYPE_CHECKING:
    from clipx.config.fit import FitConfig
    from clipx.fitting.guess import Guess
    from clipx.fitting.request import FitRequest


def _option(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help, show_default=False)


_COLUMN, _COLUMNS = "COLUMN", "COLUMN,..."


def fit(
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="Rows to learn from: CSV, TSV, JSON lines, parquet, arrow, or shards of `clipx data make --absent`.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Change what is guessed, e.g. targets.price.transform=none.", show_default=False
        ),
    ] = None,
    *,
    target: Annotated[list[str], _option(_COLUMNS, "What is to be predicted.")],
    model: Annotated[
        str,
        _option(
            "MODEL",
            "What makes vectors of pictures and texts: a clipx run or export, a CLIP or SigLIP of transformers or "
            "open_clip, or hf://ORG/NAME. It stays as it is, unless encoder.train says otherwise.",
        ),
    ],
    out: Annotated[str, _option("DIR", "The run folder; begun before, it goes on.")],
    image: Annotated[str | None, _option(_COLUMN, "Of pictures, or their paths.")] = None,
    text: Annotated[list[str] | None, _option(_COLUMNS, "Of a text; several are joined by commas.")] = None,
    number: Annotated[list[str] | None, _option(_COLUMNS, "Of numbers.")] = None,
    category: Annotated[list[str] | None, _option(_COLUMNS, "Of words, of which there are few different ones.")] = None,
    input: Annotated[list[str] | None, _option(_COLUMNS, "Of numbers or words: looked at to find out.")] = None,
    val: Annotated[str | None, _option("TABLE|SHARE", "What is held out to measure; default: 0.1.")] = None,
    group: Annotated[str | None, _option(_COLUMN, "Rows with one value in it are held out together.")] = None,
    key: Annotated[str | None, _option(_COLUMN, "That names rows; default: their numbers do.")] = None,
    image_folder: Annotated[
        str | None, _option("DIR", "Where relative paths of pictures begin; default: the table's folder.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the rows, at most; default: by their number.", show_default=False),
    ] = None,
) -> None:
    """Learn to predict columns of a table from pictures, texts, numbers and categories.

    Looks at the table, writes the config that it guesses (DIR/fit.yaml, a reason beside each line), trains it, and ends
    with a table: figures of rows that training did not see, beside those of guessing the most frequent class or the
    mean, of the picture alone, and of the text alone. `clipx predict DIR TABLE` uses the model. The same command again
    goes on, or prints the table. Works under torchrun and accelerate launch. Exit codes are those of `clipx train`.
    """
    from clipx.fitting.request import FitRequest

    given = overrides or []
    if wrong := [text for text in given if not is_override(text)]:
        raise InputError(f"{wrong[0]!r} is no KEY=VALUE; there is one TABLE, and columns are named by options")
    request = FitRequest(
        table=table,
        targets=_split(target),
        model=model,
        out=out,
        image=image,
        text=_split(text),
        numbers=_split(number),
        categories=_split(category),
        inputs=_split(input),
        val=val,
        group=group,
        key=key,
        image_folder=image_folder,
        epochs=epochs,
    )
    require_folder(out, option="--out")
    config, guessed = _config(request, given)
    if _is_first():
        print_guess(guessed, Path(out))
    require_inputs(config)
    from clipx.distributed.environment import overrule_environment

    overrule_environment(config)  # before torch is imported, which reads some of it then
    from clipx.train.trainer import train as run

    code = run(config)
    if code == 0 and _is_first():
        print_scores(config)
        say(f"predict other rows: clipx predict {out} TABLE --out FILE.csv")
    raise typer.Exit(code)


def _split(columns: Sequence[str] | None) -> tuple[str, ...]:
    """The columns of an option that was given once or several times."""
    return tuple(name.strip() for value in columns or () for name in value.split(",") if name.strip())


def _is_first() -> bool:
    """Whether this process is alone, or the first of several."""
    return all(os.environ.get(name) in (None, "", "0") for name in ("RANK", "SLURM_PROCID"))


def _config(request: "FitRequest", overrides: Sequence[str]) -> "tuple[FitConfig, Guess]":
    """The config that is guessed, or was before: every rank guesses the same, the first writes it down."""
    from clipx.config.fit import FitConfig
    from clipx.fitting.guess import guess, require_numbers
    from clipx.fitting.guessed_file import FILE, guessed_text, settle, with_overrides
    from clipx.fitting.request import open_table
    from clipx.pretrained.run_config import load_config

    guessed = with_overrides(guess(request, open_table(request)), overrides)
    require_numbers(guessed)
    text = guessed_text(guessed)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / FILE
        draft.write_text(text, encoding="utf-8")
        try:
            config = load_config(draft)  # what is wrong with it is said before anything is written
        except InputError as error:
            raise InputError(str(error).replace("encoder.from:", "--model:", 1)) from error
    assert isinstance(config, FitConfig)
    if _is_first():
        settle(text, Path(config.run_dir))
    return config, guessed
