"""Files that an option names, for what a command has found."""

import json
from contextlib import suppress
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
        InputError: it cannot be written, or would replace what is no JSON; the message names the option.
    """
    require_json(path, option=option)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written: {error.strerror}") from error


def require_json(path: Path, *, option: str) -> None:
    """Refuses to replace what is no JSON.

    Raises:
        InputError: such a file is there; the message names the option.
    """
    if _is_something_else(path):
        raise InputError(f"{option} {path}: a file is there that holds no JSON, and is not replaced; name another")


def _is_something_else(path: Path) -> bool:
    """Whether a regular file is there whose content, or whose first line, is no JSON: a program, a config, a text."""
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:  # writing will say why
        return False
    for part in (content, content.partition(b"\n")[0]):
        with suppress(ValueError):
            json.loads(part)
            return False
    return bool(content)
