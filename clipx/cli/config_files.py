"""The arguments CONFIG.yaml [OVERLAY.yaml ...] [KEY=VALUE ...], which several commands accept."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipx.config.paths import expand_home
from clipx.errors import InputError

if TYPE_CHECKING:
    from clipx.config.schema import RunConfig

_OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=")

ConfigArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG.yaml|KEY=VALUE",
        help="Files merge from left to right; then overrides apply, e.g. optim.lr=3e-4 data.workers=8.",
        show_default=False,
    ),
]


def with_home(argument: str) -> str:
    """An argument in which ~ stands for the home folder, as the shell writes it for `DIR`, but not for `--to=DIR`."""
    option, path = re.fullmatch(r"(--[\w-]+=)?(.*)", argument, re.DOTALL).groups("")  # type: ignore[union-attr]
    return option + expand_home(path) if path.startswith("~") else argument


def is_config(arguments: Sequence[str]) -> bool:
    """Whether a config file is among the arguments."""
    return any(argument.endswith((".yaml", ".yml")) for argument in arguments)


def _is_file(argument: str) -> bool:
    """Whether it is a config file that is there, though its folder has a name like lr=3e-4."""
    return is_config([argument]) and Path(argument).is_file()


def load_arguments(arguments: Sequence[str]) -> "RunConfig":
    """Loads the config from the arguments.

    Raises:
        InputError: an argument is neither a file nor an override, or the config is wrong.
    """
    from clipx.config.load import load_config

    overrides = [argument for argument in arguments if _OVERRIDE.match(argument) and not _is_file(argument)]
    files = [argument for argument in arguments if argument not in overrides]
    for file in files:
        if not is_config([file]):
            raise InputError(f"{file!r} is neither a config file (.yaml, .yml) nor an override (key=value)")
    return load_config(files, overrides)
