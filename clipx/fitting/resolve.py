"""From the config of a fit run to the one that is trained: its shards, and the facts of their columns.

    data.train, data.val -> shards (`shards.py`) -> counts (`count.py`) -> classes, means, scales (`facts.py`)

A config that has all of it stays as it is: resuming, evaluating and predicting look at no table again.
"""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import ClassTarget, LabelsTarget, NumberTarget
from clipx.data.index.shard_index import build_index
from clipx.errors import InputError, some_names
from clipx.fitting.count import Cells, Counts, count_rows
from clipx.fitting.facts import warn_of_unknown, with_facts
from clipx.fitting.shards import shards_folder, with_shards
from clipx.fitting.tables import are_shards

_MIN_ROWS_FOR_LIMIT = 100  # below, a share of bad rows says nothing

log = logging.getLogger(__name__)


def resolve(config: FitConfig) -> FitConfig:
    """The config with shards and facts; called by one process, which holds the run folder's lock.

    Raises:
        InputError: a table or a column is not what the config says; what cannot be learned.
        RunError: too many pictures cannot be read, or a storage fails.
    """
    if config.is_resolved:
        _warn_of_others(config)
        return config
    if config.data.train_shards is None or config.data.val_shards is None:
        config = with_shards(config)
    train = _count(config, config.data.train_shards)
    _require_readable(train, config, key="data.train")
    config = with_facts(config, train)
    val = _count(config, config.data.val_shards)
    _require_readable(val, config, key="data.val")
    warn_of_unknown(config, val)
    for line in described(config, train, val):
        log.info("%s", line)
    return config


def _warn_of_others(config: FitConfig) -> None:
    """Tells that the shards of a copied config are another run's, whatever table it now names."""
    data, own = config.data, shards_folder(config, "train")
    if not are_shards(data.train) and [Path(path).absolute() for path in data.train_shards or ()] != [own.absolute()]:
        log.warning(
            "data.train_shards=%s are of another run, and %s is not read; for its rows set data.train_shards, "
            "data.val_shards and the facts of inputs and targets to null",
            *(some_names(data.train_shards or ()), some_names(data.train)),
        )


def _count(config: FitConfig, shards: list[str] | None) -> Counts:
    assert shards is not None
    return count_rows(build_index(shards, remote=config.data.remote), config)


def _require_readable(counts: Counts, config: FitConfig, *, key: str) -> None:
    """Looks how many rows are no samples: training would end for too many of them.

    Raises:
        InputError: they are more than `data.max_bad_fraction` of 100 rows or more, or all.
    """
    num_bad = counts.num_empty + counts.num_bad
    if not num_bad:
        return
    reasons = {"have none of the inputs": counts.num_empty, "have a record that cannot be read": counts.num_bad}
    what = " and ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    message = f"{key}: of {counts.num_rows:,} rows {what} ({some_names(config.inputs)})"
    limit = config.data.max_bad_fraction
    if num_bad == counts.num_rows or num_bad > limit * counts.num_rows >= limit * _MIN_ROWS_FOR_LIMIT:
        raise InputError(
            f"{message}, and data.max_bad_fraction={limit:g} allows {int(limit * counts.num_rows):,}; take them out of "
            "the table, or raise that"
        )
    log.warning("%s; they are left out", message)


def described(config: FitConfig, train: Counts, val: Counts) -> Iterator[str]:
    """What was found, in lines for a person."""
    origin = some_names(config.data.train)
    inputs = ", ".join(
        f"{_present(name, train, config) + _present(name, val, config):,} with {name}" for name in config.inputs
    )
    yield (
        f"{origin}: {train.num_rows + val.num_rows:,} rows: {inputs}; {train.num_rows:,} for training, "
        f"{val.num_rows:,} held out"
    )
    yield "; ".join(f"{name}: {_target(config, name, train)}" for name in config.targets)


def _present(name: str, counts: Counts, config: FitConfig) -> int:
    match config.inputs[name].type:
        case "image":
            return counts.num_pictures
        case "text":
            return counts.num_texts
        case _:
            return counts.cells[f"inputs.{name}"].present


def _target(config: FitConfig, name: str, train: Counts) -> str:
    cells = train.cells[f"targets.{name}"]
    rows = f"{cells.present:,} rows"
    match config.targets[name]:
        case NumberTarget(transform=transform):
            low, high = min(cells.numbers), max(cells.numbers)
            if transform == "log":
                low, high = math.exp(low), math.exp(high)
            return f"{rows}, {low:.4g} to {high:.4g}"
        case ClassTarget() | LabelsTarget() as target:
            return f"{rows}, {len(cells.labels):,} {_kind(target)} ({_largest(cells)})"


def _kind(target: ClassTarget | LabelsTarget) -> str:
    return "classes" if isinstance(target, ClassTarget) else "labels"


def _largest(cells: Cells) -> str:
    (name, count), *_ = cells.labels.most_common(1)
    return f"most often {some_names([name])}, {count / cells.present:.0%}"
