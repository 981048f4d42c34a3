"""The columns that a fitted model predicts from; needs no torch."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from clipx.checkpoint.find import find_config
from clipx.config.fit import FitConfig
from clipx.errors import InputError, some_names
from clipx.pretrained.stored_model import described


def fitted_config(path: Path | str) -> FitConfig:
    """The config of a model that a fit run trained.

    Raises:
        InputError: it is a model of another kind, or none.
    """
    config = described(find_config(path))
    if not isinstance(config, FitConfig):
        raise InputError(
            f"{path} embeds pictures and texts, and predicts nothing else; train a model that does: clipx fit TABLE "
            f"--model {path} ..."
        )
    return config


def input_columns(config: FitConfig) -> list[str]:
    """The columns that a fitted model predicts from, each once."""
    return list(dict.fromkeys(column for _, column in config.input_columns()))


def require_columns(wanted: Sequence[str], there: Iterable[str], *, origin: str, hint: str) -> None:
    """Looks whether columns of inputs are there.

    Raises:
        InputError: one is not; `hint` says how to predict without it.
    """
    names = list(there)
    if missing := [name for name in wanted if name not in names]:
        lacks = f"column {missing[0]!r}" if len(missing) == 1 else f"columns {some_names(missing)}"
        raise InputError(
            f"{origin}: no {lacks}, from which this model predicts (there are: {some_names(names) or 'none'}); add "
            f"what is missing, or {hint}"
        )
