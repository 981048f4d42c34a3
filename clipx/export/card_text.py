"""Tables and lines of a model card: Markdown without secrets, whose cells nothing can leave."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from clipx.printable import printable, shown


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown; cells are escaped."""
    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def line(value: object) -> str:
    """The value in one line, without secrets and without what a terminal or a page obeys."""
    return printable(" ".join(shown(value).split())).replace("<", "&lt;")


def cell(value: object) -> str:
    """A line that fits into a cell."""
    return line(value).replace("|", "\\|")


def code_name(name: str) -> str:
    """A name between backticks; of a local path its last part."""
    return line(Path(name).name if Path(name).is_absolute() else name).replace("`", "'")


def count(value: float | None) -> str:
    """A whole number with commas; empty without one."""
    return "" if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """A number with the digits that matter; empty without one."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(share: float | None) -> str:
    """A share in percent; empty without one."""
    return "" if share is None else f"{share:.1%}"
