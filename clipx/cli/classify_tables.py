"""The tables of `clipx classify`; rich is imported when something is shown."""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from clipx.cli.output import say
from clipx.printable import shown

if TYPE_CHECKING:
    from clipx.use.classified import Classified, Picture

_ALL = 20  # pictures of which each has a line
_FIRST = 10  # of more pictures, those that have one
_CLASSES = 20
_LEAST = 0.0005  # 0.1% at least; files have the others, too
_NAMED = 10  # of what was left out


def print_classified(classified: "Classified") -> None:
    """Prints each picture with its classes; of many pictures the first, and how many each class has."""
    total = len(classified)
    if total > _ALL:
        _print_counts(classified)
        say(f"the first {_FIRST} of {total:,} pictures:")
    _print_pictures(islice(classified, _FIRST if total > _ALL else total))
    if without := classified.num_without():
        say(f"{without:,} of {total:,} pictures have no class of probability {classified.threshold:g} or more")
    if left_out := classified.left_out:
        for row in left_out[:_NAMED]:
            say(f"left out: {row.name}: {row.reason}{f' ({row.detail})' if row.detail else ''}")
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in classified.reasons().items())
        more = f", of which {_NAMED} are named above" if len(left_out) > _NAMED else ""
        say(f"{len(left_out):,} of {total + len(left_out):,} inputs are left out{more}: {reasons}")


def _print_pictures(pictures: "Iterable[Picture]") -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("picture", overflow="fold"), "class", Column("probability", justify="right"), "then")
    for picture in pictures:
        others = [label for label in picture.labels[1:] if label.probability >= _LEAST]
        then = ", ".join(f"{label.name} {label.probability:.1%}" for label in others)
        best = [(label.name, f"{label.probability:.1%}") for label in picture.labels[:1]] or [("", "")]
        table.add_row(*(Text(shown(cell)) for cell in (picture.key, *best[0], then)))
    Console().print(table)


def _print_counts(classified: "Classified") -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    numbers = (Column(name, justify="right") for name in ("pictures", "share", "mean probability"))
    table = Table(Column("class", overflow="fold"), *numbers)
    counts = classified.counts()
    for name, count, mean in counts[:_CLASSES]:
        table.add_row(Text(shown(name)), f"{count:,}", f"{count / len(classified):.1%}", f"{mean:.1%}")
    Console().print(table)
    if len(counts) > _CLASSES:
        say(f"and {len(counts) - _CLASSES:,} more classes with fewer pictures")
