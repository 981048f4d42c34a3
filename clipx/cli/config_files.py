"""The arguments CONFIG.yaml [OVERLAY.yaml ...] [KEY=VALUE ...], which several commands accept."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipx.config.paths import expand_home
from clipx.errors import InputError, some_names

if TYPE_CHECKING:
    from clipx.config.schema import JobConfig

_OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=")

ConfigArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG.yaml|KEY=VALUE",
        help="Files (or names of clipx's own, e.g. tiny) merge from left to right; then overrides apply, e.g. "
        "optim.lr=3e-4 data.workers=8.",
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


def names_config(arguments: Sequence[str]) -> bool:
    """Whether arguments that may be shards name a config instead: a file, or one of clipx's own."""
    from clipx.config.shipped import shipped_names

    own = shipped_names()
    return is_config(arguments) or any(name in own and not Path(name).exists() for name in arguments)


def is_override(argument: str) -> bool:
    """Whether the argument is `key.sub=value`, and no config file that is there, in a folder called lr=3e-4."""
    return _OVERRIDE.match(argument) is not None and not (is_config([argument]) and Path(argument).is_file())


def with_shards(config: "JobConfig") -> "JobConfig":
    """The config of a run whose data are shards: of a fit run, what it found when it began.

    Raises:
        InputError: it has not begun.
    """
    from clipx.config.fit import FitConfig
    from clipx.config.load import load_config

    if not isinstance(config, FitConfig) or config.is_resolved:
        return config
    path = Path(config.run_dir) / "config.yaml"
    begun = load_config(path) if path.is_file() else None
    if isinstance(begun, FitConfig) and begun.is_resolved and begun.data.train == config.data.train:
        return begun
    raise InputError(
        f"data.train={some_names(config.data.train)} becomes shards in run_dir={config.run_dir} when the run begins, "
        "and it has not yet; begin it by `clipx train`, then this command reads them"
    )


def load_arguments(arguments: Sequence[str]) -> "JobConfig":
    """Loads the config from the arguments.

    Raises:
        InputError: an argument is neither a file nor an override, or the config is wrong.
    """
    from clipx.config.shipped import shipped_names
    from clipx.pretrained.run_config import load_config

    overrides = [argument for argument in arguments if is_override(argument)]
    files = [argument for argument in arguments if not is_override(argument)]
    for file in files:
        if not is_config([file]) and file not in (shipped := shipped_names()):
            raise InputError(
                f"{file!r} is neither a config file (.yaml, .yml) nor an override (key=value) nor a config of clipx's "
                f"own ({some_names(shipped)})"
            )
    return load_config(files, overrides)
