"""Suites of evaluation sets: a YAML file names them, and for each the figure that stands for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clipx.config.field_types import STRICT, Text
from clipx.config.load import read_tree
from clipx.config.shipped import SUITES, suite_names
from clipx.config.validate import validate, validated
from clipx.errors import InputError, some_names

SetType = Literal["classification", "retrieval", "multilabel"]


@validated
@dataclass(frozen=True, kw_only=True)
class SuiteSet:
    """An evaluation set of a suite."""

    __pydantic_config__ = STRICT

    data: Text
    """Folder or file of the set; under --data-root if that is given."""
    title: Text | None = None
    """What result files and tables call it; null: its name in the suite."""
    type: SetType | None = None
    """What the set must be; null: whatever it is."""
    main_metric: Text | None = None
    """The figure that stands for the set; null: acc1, mean_recall@1 or mean_average_precision, by the set's type."""
    split: Text = "test"
    """The part of the set that is read."""


@validated
@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Evaluation sets, the mean of whose main figures stands for a model."""

    __pydantic_config__ = STRICT

    name: Text
    """What tables call the mean."""
    sets: dict[str, SuiteSet] = field(default_factory=dict)
    """The sets by name, in the order of the tables."""


def load_suite(name: str) -> SuiteConfig:
    """The suite of a YAML file, or of clipx's own by its name, e.g. `datacomp38`.

    Raises:
        InputError: there is none, it is no YAML mapping, breaks a rule, or has no set.
    """
    path = Path(name)
    if not path.is_file() and name in suite_names():
        path = SUITES / f"{name}.yaml"
    elif not path.is_file() and path.suffix not in (".yaml", ".yml"):
        own = some_names(suite_names())
        raise InputError(f"--suite {name}: neither a YAML file nor a suite of clipx's own ({own})")
    suite = validate(SuiteConfig, read_tree(path))
    if not suite.sets:
        raise InputError(f"{path}: sets is empty; name at least one")
    return suite
