"""Files that an option names, for what a command has found."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipx.errors import InputError
from clipx.printable import shown

FiguresFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")]


def say(text: str) -> None:
    """Prints a result, fit to be shown: it may name what a stranger chose."""
    typer.echo(shown(text))


def write_json(path: Path, value: object) -> None:
    """Writes what --json asks for; sets become sorted lists.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, default=sorted) + "\n", option="--json")


def write_text(path: Path, content: str, *, option: str) -> None:
    """Writes a file, and makes its folder.

    Raises:
        InputError: it cannot be written; the message names the option.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written: {error.strerror}") from error
