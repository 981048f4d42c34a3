"""What `clipx fit` shows: what was guessed, and what came of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx.cli.output import say
from clipx.printable import shown

if TYPE_CHECKING:
    from clipx.fitting.guess import Guess


def print_guess(guess: "Guess", folder: Path) -> None:
    """Prints what was decided, and why."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clipx.fitting.guessed_file import FILE, at

    table = Table("guessed", "", "because", box=None, header_style="bold", pad_edge=False)
    for key, reason in guess.reasons.items():
        table.add_row(Text(shown(key)), Text(shown(_value(at(guess.tree, key)))), Text(shown(reason)))
    Console().print(table)
    say(f"the whole config: {folder / FILE}")


def _value(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, dict):
        return ", ".join(str(item) for item in value.values())
    return str(value)


def print_scores(config: "FitConfig") -> None:
    """Placeholder until figures are there."""
