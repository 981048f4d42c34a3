"""Classes of pictures as files for other programs: JSON with everything, CSV with a line for each picture."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from clipx.errors import InputError
from clipx.printable import redact
from clipx.storage.own_csv import require_csv_of

if TYPE_CHECKING:
    from clipx.use.classified import Classified, Picture

_FIRST = ("picture", "class", "probability", "cosine")


def require_own_csv(path: Path) -> None:
    """Refuses to replace what is no CSV of classes of pictures.

    Raises:
        InputError: such a file is there.
    """
    require_csv_of(path, _FIRST, what="classes of pictures")


def write_csv(path: Path, classified: "Classified") -> None:
    """Writes a line for each picture, with three columns for each of its classes, the most probable first.

    Raises:
        InputError: it cannot be written, or would replace something else.
    """
    require_own_csv(path)
    kept = classified.index_NK.shape[1]
    more = [f"{name}_{place}" for place in range(2, kept + 1) for name in _FIRST[1:]]
    with _replaced(path, option="--csv", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_FIRST, *more])
        for picture in classified:
            cells = [
                cell for label in picture.labels for cell in (label.name, *_digits(label.probability, label.cosine))
            ]
            writer.writerow([redact(picture.name), *cells, *[""] * (3 * kept - len(cells))])


def write_json(path: Path, classified: "Classified", about: Mapping[str, object]) -> None:
    """Writes an object with `about`, `pictures` and `left_out`; each picture is a line.

    Raises:
        InputError: it cannot be written.
    """
    left_out = (
        {"picture": redact(row.name), "reason": row.reason, "detail": redact(row.detail)} for row in classified.left_out
    )
    with _replaced(path, option="--json") as file:
        file.write("{\n")
        for name, value in about.items():
            file.write(f"  {json.dumps(name)}: {json.dumps(value)},\n")
        file.write('  "pictures": [')
        _write_lines(file, map(_record, classified))
        file.write('],\n  "left_out": [')
        _write_lines(file, left_out)
        file.write("]\n}\n")


def _record(picture: "Picture") -> dict[str, object]:
    labels = [
        dict(zip(_FIRST[1:], (label.name, *_digits(label.probability, label.cosine)), strict=True))
        for label in picture.labels
    ]
    return {"picture": redact(picture.name), "key": redact(picture.key), "classes": labels}


def _write_lines(file: IO[str], records: Iterable[Mapping[str, object]]) -> None:
    between = "\n"
    for record in records:
        file.write(f"{between}    {json.dumps(record)}")
        between = ",\n"
    file.write("" if between == "\n" else "\n  ")


def _digits(*values: float) -> Iterator[float]:
    """The digits that a float32 has."""
    return (float(f"{value:.7g}") for value in values)


@contextmanager
def _replaced(path: Path, *, option: str, newline: str | None = None) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` when it is complete; what is no file, as a pipe, is written at once.

    Raises:
        InputError: it cannot be written.
    """
    special = path.exists() and not path.is_file()
    target = path if special else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # names of files that are no UTF-8 come back as their own bytes
            with open(target, "w", encoding="utf-8", errors="surrogateescape", newline=newline) as file:
                yield file
            if not special:
                os.replace(target, path)
        finally:
            if not special:
                target.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written: {error.strerror or error}") from error
