"""The config of a fit run, guessed from its table: kinds of columns, sizes of batches, epochs, the learning rate.

What a person said stands; everything else is decided here, each with a reason that is shown and written beside it. The
same table and request give the same config, so every rank may guess for itself.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipx.config.fit_metrics import HEADLINES
from clipx.data.rows.named_files import lost_picture
from clipx.data.rows.row import Rows
from clipx.errors import InputError, some_names
from clipx.fitting.column_summary import SEPARATORS, ColumnSummary, summarised
from clipx.fitting.request import FitRequest

Tree = dict[str, Any]

_FEW = 20  # whole numbers of at most so many different values are classes, if each comes
_EACH = 5  # so often, on average
_VAL_SHARE = 0.1
_LARGEST_BATCH, _LEAST_STEPS_PER_EPOCH, _STEPS = 256, 8, 2_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 5, 100
_WARMUP_STEPS = 50
_PATIENCE = 5


@dataclass(frozen=True)
class Guess:
    """A config, as plain values, and why it is as it is."""

    tree: Tree
    reasons: Mapping[str, str]
    """By the dotted key of what was decided."""
    no_numbers: Mapping[str, str] = field(default_factory=dict)
    """By column, what its first cell that is no number is."""


def guess(request: FitRequest, rows: Rows) -> Guess:
    """The config of a fit run.

    Args:
        request: what is known.
        rows: of `open_table`.

    Raises:
        InputError: a column is absent or empty, pictures are not there, or a target has one value, or another one in
            nearly every row.
    """
    _require_columns(request, rows)
    if (lost := lost_picture(rows)) is not None:
        raise InputError(
            f"{request.table}: not one of the pictures that it names is there, as {lost}; say with --image-folder "
            "where their paths begin"
        )
    summaries = summarised(rows, [name for name in request.columns if name != request.image], origin=request.table)
    _require_numbers(request, summaries)
    reasons: dict[str, str] = {}
    inputs = _inputs(request, summaries, reasons)
    targets: Tree = {}
    for column in request.targets:
        name = _name(column, [*inputs, *targets])
        targets[name], reasons[f"targets.{name}"] = _target(column, summaries[column], request.table)
        _add_column(targets[name], name, column)
    share = _share(request.val)
    num_train = len(rows) if share is None else round(len(rows) * (1 - share))
    batch = _batch(num_train, reasons)
    epochs = _epochs(request.epochs, num_train, batch, reasons)
    tree: Tree = {
        "job": "fit",
        "run_dir": request.out,
        "data": _data(request, share, reasons),
        "inputs": inputs,
        "targets": targets,
        "encoder": {"from": request.model, "train": "frozen"},
        "epochs": epochs,
        "global_batch_size": batch,
        "precision": "fp32",
        "optim": {"warmup_steps": min(_WARMUP_STEPS, epochs * -(-num_train // batch) // 10)},
        "stop": _stop(targets, reasons),
    }
    reasons["encoder.train"] = "its vectors are computed once, and epochs are fast; or all, or {image: N, text: N}"
    reasons["precision"] = "all is small but the encoder, which computes once"
    reasons["optim.warmup_steps"] = "of a tenth of the steps, at most"
    no_numbers = {
        column: f"{request.table}: row {found.no_number[0]}, column {column!r}: {found.no_number[1]}"
        for column, found in summaries.items()
        if found.no_number is not None
    }
    return Guess(tree, reasons, no_numbers)


def require_numbers(guess: Guess) -> None:
    """Raises an InputError if a column of numbers has a cell that is none: training says so after making shards."""
    for parts in (guess.tree.get("inputs"), guess.tree.get("targets")):
        for name, part in parts.items() if isinstance(parts, dict) else ():
            is_number = isinstance(part, dict) and part.get("type") == "number"
            if is_number and (wrong := guess.no_numbers.get(part.get("column") or name)) is not None:
                raise InputError(f"{wrong}; correct the cell, or leave it empty if it is not known")


def _require_columns(request: FitRequest, rows: Rows) -> None:
    further = [name for name in (request.group, request.key) if name is not None]
    for column in (*request.columns, *further):
        if column != request.image:  # which is no field of a record; opening the table has looked for it
            try:
                rows.require_column(column)
            except InputError as error:
                raise InputError(f"{request.table}: {error}") from error


def _require_numbers(request: FitRequest, summaries: Mapping[str, ColumnSummary]) -> None:
    """A column of few numbers is named wrongly; of a single cell that is none `require_numbers` tells."""
    for column in request.numbers:
        if not (found := summaries[column]).is_numeric:
            others = some_names(list(found.values)[:3])
            raise InputError(
                f"{request.table}: column {column!r} is no column of numbers: {len(found.numbers):,} of "
                f"{found.num_present:,} cells are, others are {others}; give it as --text or --category"
            )


def _inputs(request: FitRequest, summaries: Mapping[str, ColumnSummary], reasons: dict[str, str]) -> Tree:
    inputs: Tree = {}

    def add(kind: str, column: str) -> str:
        name = _name(column, list(inputs))
        inputs[name] = {"type": kind}
        if kind != "text":
            _add_column(inputs[name], name, column)
        elif [name] != list(request.text):
            inputs[name]["columns"] = list(request.text)
        return name

    if request.image is not None:
        add("image", request.image)
    if request.text:
        add("text", request.text[0])
    for column in request.numbers:
        add("number", column)
    for column in request.categories:
        add("category", column)
    for column in request.inputs:
        kind, reason = _input_kind(column, summaries[column], request.table)
        reasons[f"inputs.{add(kind, column)}"] = reason
    return inputs


def _input_kind(column: str, found: ColumnSummary, table: str) -> tuple[str, str]:
    different = len(found.values)
    if found.is_numeric:
        return "number", f"{different:,} different numbers"
    if found.has_pictures:
        raise InputError(f"{table}: column {column!r} names pictures; give it as --image {column}")
    if different * 2 > found.num_present:
        raise InputError(
            f"{table}: column {column!r} has {different:,} different values in {found.num_present:,} cells, which are "
            f"no categories; give it as --text {column}"
        )
    return "category", f"{different:,} different values"


def _target(column: str, found: ColumnSummary, table: str) -> tuple[Tree, str]:
    """The kind of a target, and why."""
    different = len(found.values) + len(found.labels)
    if different < 2:
        only = next(iter((*found.values, *found.labels)), "")
        raise InputError(
            f"{table}: target {column!r} is {only!r} in all of {found.num_present:,} cells; name one whose cells differ"
        )
    if found.num_lists * 2 > found.num_present:
        return {"type": "labels"}, f"lists of {len(found.labels):,} different labels"
    if found.is_numeric:
        if found.is_whole and different <= _FEW and different * _EACH <= found.num_present:
            return {"type": "class"}, f"{different} different whole numbers"
        span = f"{different:,} different numbers from {min(found.numbers):g} to {max(found.numbers):g}"
        if found.is_skewed():
            return {"type": "number", "transform": "log"}, f"{span}, with a long tail: their logarithm"
        return {"type": "number"}, span
    if (separator := found.separator()) is not None:
        return _labels(found, separator)
    if different * 2 > found.num_present:
        raise InputError(
            f"{table}: target {column!r} has {different:,} different values in {found.num_present:,} cells, as "
            f"{some_names(list(found.values)[:3])}; classes must come again"
        )
    return {"type": "class"}, f"{different:,} different values"


def _labels(found: ColumnSummary, separator: str) -> tuple[Tree, str]:
    different = {part.strip() for value in found.values for part in value.split(separator)}
    tree: Tree = {"type": "labels"}
    if separator != SEPARATORS[0]:
        tree["separator"] = separator
    return tree, f"{len(different):,} different labels, with {separator!r} between them"


def _share(val: str | None) -> float | None:
    """The share of the rows that validation takes; None where it has a table of its own."""
    if val is None:
        return _VAL_SHARE
    try:
        share = float(val)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise InputError(f"--val {val}: a share lies between 0 and 1; give such a one, or another table")
    return share


def _data(request: FitRequest, share: float | None, reasons: dict[str, str]) -> Tree:
    if request.val is None:
        reasons["data.val"] = "share of the rows that is held out, always the same ones"
    said = {"group": request.group, "key": request.key, "image_folder": request.image_folder}
    return {
        "train": request.table,
        "val": request.val if share is None else share,
        **{key: value for key, value in said.items() if value is not None},
    }


def _batch(num_train: int, reasons: dict[str, str]) -> int:
    """The largest power of two with which an epoch has eight steps, from 2 to 256."""
    most = min(_LARGEST_BATCH, max(2, num_train // _LEAST_STEPS_PER_EPOCH))
    batch = 1 << (most.bit_length() - 1)
    reasons["global_batch_size"] = f"{num_train:,} rows to train on; at least {_LEAST_STEPS_PER_EPOCH} steps an epoch"
    return batch


def _epochs(asked: int | None, num_train: int, batch: int, reasons: dict[str, str]) -> int:
    """As many as make 2,000 steps, from 5 to 100."""
    if asked is not None:
        return asked
    steps = max(1, -(-num_train // batch))
    epochs = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, round(_STEPS / steps)))
    reasons["epochs"] = f"{epochs * steps:,} steps at most; it ends where nothing improves any more"
    return epochs


def _stop(targets: Tree, reasons: dict[str, str]) -> Tree:
    """What the best checkpoint is chosen by: the figure of the one target, or the loss of all of them."""
    first, *others = targets.items()
    name, target = first
    metric = "loss" if others else f"{name}/{HEADLINES[target['type']]}"
    what = "all targets together" if others else "of rows that training does not see"
    reasons["stop"] = f"{what}; the best checkpoint is the model"
    return {"metric": metric, "patience": _PATIENCE}


def _add_column(tree: Tree, name: str, column: str) -> None:
    if name != column:
        tree["column"] = column


def _name(column: str, taken: Sequence[str]) -> str:
    """A name for a column: its own, of letters, digits, _ and -, and no other's."""
    name = base = re.sub(r"[^\w-]+", "_", column).strip("_-") or "column"
    number = 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
