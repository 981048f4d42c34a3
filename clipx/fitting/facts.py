"""From the counts of the training rows to the facts of the config: classes, counts, means, scales.

They are exactly the same for rows in any order: sums are rounded once (`math.fsum`), and classes are sorted.
"""

import logging
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import (
    CategoryInput,
    ClassTarget,
    InputConfig,
    LabelsTarget,
    NumberInput,
    NumberTarget,
    TargetConfig,
)
from clipx.errors import InputError, some_names
from clipx.fitting.count import Cells, Counts, counted_parts

_MIN_FREE_TEXT = 20  # rows, each with a class of its own, from which a column is no column of classes

log = logging.getLogger(__name__)


def with_facts(config: FitConfig, counts: Counts) -> FitConfig:
    """The config with what the training rows say, where it says nothing itself.

    Raises:
        InputError: a column is absent or empty, or a target constant, of a class for each row, or of other classes than
            its config says.
    """
    _require_columns(config, counts)
    cells = counts.cells
    inputs = {name: _input(f"inputs.{name}", part, cells) for name, part in config.inputs.items()}
    targets = {name: _target(key := f"targets.{name}", part, cells[key]) for name, part in config.targets.items()}
    return replace(config, inputs=inputs, targets=targets)


def warn_of_unknown(config: FitConfig, counts: Counts) -> None:
    """Names and counts the labels of held-out rows that the config's classes do not have; and targets that none has.

    Args:
        config: with its facts.
        counts: of the held-out rows.
    """
    for key, (column, part) in counted_parts(config).items():
        if key.startswith("targets.") and not counts.cells[key].present:
            log.warning("%s: no validation row has a cell in column %r, so it is not scored", key, column)
        if isinstance(part, NumberInput | NumberTarget):
            continue
        labels, known = counts.cells[key].labels, set(part.classes or ())
        unknown = [name for name in sorted_labels(labels) if name not in known]
        if not unknown:
            continue
        outcome = {
            "category": "the category counts as absent there",
            "class": "these rows are not scored for it",
            "labels": "these labels are not scored",
        }[part.type]
        log.warning(
            "%s: %d of the validation rows' labels are in no training row (column %r): %s; %s",
            *(key, len(unknown), column, _counted_names(labels, unknown), outcome),
        )


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Labels in the order in which people count: 2 before 10, and "size 2" before "size 10"."""
    return sorted(labels, key=_place)


def _place(label: str) -> tuple[float, list[tuple[str, int]], str]:
    if re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]+)?", label):
        return float(label), [], label
    parts = re.findall(r"([^0-9]*)([0-9]{0,15})", label)
    return math.inf, [(text.lower(), int(digits or -1)) for text, digits in parts], label


def _require_columns(config: FitConfig, counts: Counts) -> None:
    """Looks whether every input and target has a cell in any row."""
    names = counts.columns
    rows = f"none of the {counts.num_rows:,} training rows"
    for name, part in config.inputs.items():
        if part.type == "image" and not counts.num_pictures:
            raise InputError(f"inputs.{name}: {rows} has a picture; name the column that holds their paths")
        if part.type == "text":
            absent = [column for column in config.text_columns if column not in names]
            if not counts.num_texts:
                raise InputError(
                    f"inputs.{name}: {rows} has a text in {_hint((absent or config.text_columns)[0], names)}"
                )
            for column in absent:
                log.warning("inputs.%s: %s has a text in %s", name, rows, _hint(column, names))
    for key, (column, _) in counted_parts(config).items():
        if not counts.cells[key].present:
            raise InputError(f"{key}: {rows} has a cell in {_hint(column, names)}")


def _hint(column: str, names: Collection[str]) -> str:
    """The column, and those that may be meant instead."""
    nearest = get_close_matches(column, [name for name in names if name != column], n=1)
    hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
    return f"column {column!r}{hint}; columns with cells: {some_names(names) or 'none'}"


def _input(key: str, part: InputConfig, cells: Mapping[str, Cells]) -> InputConfig:
    match part:
        case NumberInput():
            return _number_input(key, part, cells[key])
        case CategoryInput():
            return _category(key, part, cells[key])
        case _:
            return part


def _number_input(key: str, part: NumberInput, cells: Cells) -> NumberInput:
    if min(cells.numbers) == max(cells.numbers):
        log.warning("%s: all training rows that have it have %g, so it says nothing", key, cells.numbers[0])
    mean, std = _spread(cells.numbers)
    return replace(part, mean=mean if part.mean is None else part.mean, std=std if part.std is None else part.std)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of numbers, of equal ones 1."""
    if min(values) == max(values):
        return values[0], 1.0
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def _category(key: str, part: CategoryInput, cells: Cells) -> CategoryInput:
    if len(cells.labels) == cells.present >= _MIN_FREE_TEXT:
        log.warning("%s: each of the %s training rows that have it has a word of its own", key, f"{cells.present:,}")
    return replace(part, classes=tuple(sorted_labels(cells.labels)) if part.classes is None else part.classes)


def _target(key: str, part: TargetConfig, cells: Cells) -> TargetConfig:
    """The target with its facts.

    Raises:
        InputError: it is constant, has a class for each row, or does not fit the classes of its config.
    """
    match part:
        case NumberTarget():
            if min(cells.numbers) == max(cells.numbers):
                number = math.exp(cells.numbers[0]) if part.transform == "log" else cells.numbers[0]
                raise _constant(key, cells, f"{number:g}")
            mean, std = _spread(cells.numbers)
            return replace(
                part, mean=mean if part.mean is None else part.mean, std=std if part.std is None else part.std
            )
        case ClassTarget():
            _check_classes(key, cells)
        case LabelsTarget():
            _check_labels(key, cells)
    classes = tuple(sorted_labels(cells.labels)) if part.classes is None else part.classes
    _require_same(key, classes, cells.labels)
    found = replace(part, classes=classes, counts=tuple(cells.labels[name] for name in classes))
    return replace(found, num_rows=cells.present) if isinstance(found, LabelsTarget) else found


def _check_classes(key: str, cells: Cells) -> None:
    if len(cells.labels) == 1:
        raise _constant(key, cells, repr(next(iter(cells.labels))))
    if len(cells.labels) == cells.present >= _MIN_FREE_TEXT:
        raise InputError(
            f"{key}: each of the {cells.present:,} training rows that have it has a class of its own "
            f"({some_names(sorted_labels(cells.labels)[:3])}, ...), so no class can be learned; a target of type class "
            "needs a column whose values repeat: name another column, or type: number for numbers"
        )


def _check_labels(key: str, cells: Cells) -> None:
    if all(count == cells.present for count in cells.labels.values()):
        raise _constant(key, cells, repr("; ".join(sorted_labels(cells.labels))) if cells.labels else "without labels")


def _constant(key: str, cells: Cells, value: str) -> InputError:
    return InputError(
        f"{key}: all {cells.present:,} training rows that have it are {value}; a target needs rows that differ: "
        "add such, or take the target out"
    )


def _require_same(key: str, classes: Sequence[str], labels: Mapping[str, int]) -> None:
    """Raises InputError if the classes are not those of the rows."""
    known = set(classes)
    if others := [name for name in sorted_labels(labels) if name not in known]:
        raise InputError(
            f"{key}.classes lacks {len(others)} classes of the training rows: {_counted_names(labels, others)}; add "
            "them, or leave out the key, and they are found"
        )
    if absent := [name for name in classes if name not in labels]:
        raise InputError(
            f"{key}.classes has {len(absent)} classes that no training row has: {some_names(absent)}; take them out, "
            "or leave out the key, and the classes are found"
        )


def _counted_names(labels: Mapping[str, int], names: Sequence[str]) -> str:
    return some_names(f"{name} ({labels[name]:,})" for name in names)
