"""Tables become shards in the run folder, once: a later start finds them by the fingerprint of their table.

    RUN_DIR/shards/train    the training rows, in an order without meaning
    RUN_DIR/shards/val      the held-out rows

Shards that a person has are read where they are, unless a part of them is to be held out.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from clipx.config.fit import FitConfig
from clipx.data.index.shard_index import build_index
from clipx.data.parallel import num_cores
from clipx.data.rows.row import Rows
from clipx.data.rows.split import split_rows
from clipx.errors import ClipxError
from clipx.fitting.count import check_cells
from clipx.fitting.tables import are_shards, open_tables
from clipx.making.make import make_shards
from clipx.making.make_shard import MakeOptions
from clipx.making.out_folder import REPORT, is_made

_ORDER = 0  # the seed of the rows' order, whatever the run's: other seeds find the same shards
_PROGRESS_EVERY_S = 30
_WORDS = (  # of `clipx data make`, whose parts speak of its options
    (r"--out (?=\S)", ""),
    (r"choose (a new folder( for --out)?|another folder|a new --out)", "choose another run_dir"),
    ("--max-bad", "data.max_bad_fraction"),
    (r"--key (\S+):", r"data.key=\1:"),
    ("--key", "data.key"),
    ("--image-folder", "data.image_folder"),
)

log = logging.getLogger(__name__)


def with_shards(config: FitConfig) -> FitConfig:
    """The config with the shards of its tables, which are made if they are not there yet.

    Raises:
        InputError: a table cannot be read, lacks a column, or has changed since its shards were made; a share leaves no
            row for training or none to hold out.
        RunError: too many pictures cannot be read, or the run folder cannot be written.
    """
    data = config.data
    opened: dict[str, Rows | list[str]] = {}
    with _said_of("data.train"):
        if isinstance(data.val, float):
            rows = open_tables(data.train, config, is_cut=True)
            opened["train"], opened["val"] = split_rows(rows, data.val, group=data.group, key=data.key)
        else:
            opened["train"] = _opened(data.train, config)
    if not isinstance(data.val, float):
        with _said_of("data.val"):
            opened["val"] = _opened(data.val, config)
    for name, rows_or_shards in opened.items():
        with _said_of(f"data.{name}"):
            if isinstance(rows_or_shards, Rows) and not is_made(shards_folder(config, name)):
                check_cells(rows_or_shards, config)
    shards: dict[str, list[str]] = {}
    for name, rows_or_shards in opened.items():  # after both were looked at
        with _said_of(f"data.{name}"):
            if isinstance(rows_or_shards, Rows):
                shards[name] = _made(rows_or_shards, config, name)
            else:
                shards[name] = rows_or_shards
    num_train = build_index(shards["train"], remote=data.remote).num_samples
    data = replace(data, train_shards=shards["train"], val_shards=shards["val"], num_train=num_train)
    return replace(config, data=data)


def shards_folder(config: FitConfig, name: str) -> Path:
    """Where the shards of a run's table lie; `name` is train or val."""
    return Path(config.run_dir) / "shards" / name


def _opened(addresses: Sequence[str], config: FitConfig) -> Rows | list[str]:
    """The rows of which shards are made, or the shards that are there."""
    return list(addresses) if are_shards(addresses) else open_tables(addresses, config, is_cut=False)


def _made(rows: Rows, config: FitConfig, name: str) -> list[str]:
    """Makes shards of rows in the run folder."""
    folder = shards_folder(config, name)
    options = MakeOptions(
        shuffle=_ORDER if name == "train" else None,
        group_rows=False,
        allow_absent=True,
        key=config.data.key,
        image_key=config.data.source(()).image_key,
    )
    made = make_shards(
        rows,
        str(folder),
        options,
        workers=num_cores(),
        max_bad=config.data.max_bad_fraction,
        quiet=True,
        on_progress=_progress(folder),
    )
    if made.left_out:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in made.left_out.items())
        log.warning(
            "data.%s: %s of %s rows are left out: %s; %s names them",
            *(name, f"{sum(made.left_out.values()):,}", f"{len(rows):,}", reasons, folder / REPORT),
        )
    return [str(folder)]


def _progress(folder: Path) -> Callable[[int, int], None]:
    """Tells now and then how far the making of shards is."""
    said_at = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal said_at
        if (now := time.monotonic()) - said_at >= _PROGRESS_EVERY_S:
            said_at = now
            log.info("%s: %s of %s rows", folder, f"{done:,}", f"{total:,}")

    return on_progress


@contextmanager
def _said_of(key: str) -> Iterator[None]:
    """Errors within the block speak of the config."""
    try:
        yield
    except ClipxError as error:
        message = error.args[0]
        for option, in_config in _WORDS:
            message = re.sub(option, in_config, message)
        raise type(error)(
            message if message.startswith(("data.", "inputs.", "targets.")) else f"{key}: {message}"
        ) from error
