"""Tables that a command may replace: those that it wrote itself."""

from collections.abc import Sequence
from pathlib import Path

from clipx.errors import InputError


def require_csv_of(path: Path, columns: Sequence[str], *, what: str) -> None:
    """Refuses to replace a file that does not begin with the names of these columns.

    Args:
        path: of the table.
        columns: the first ones.
        what: such a table holds, for the message.

    Raises:
        InputError: such a file is there.
    """
    expected = ",".join(columns).encode()
    try:
        if not path.is_file():  # opening a fifo would wait
            return
        with open(path, "rb") as file:
            head = file.read(len(expected))
    except OSError:  # nothing is there, or writing will say what is wrong
        return
    if head not in (b"", expected):
        raise InputError(f"--csv {path}: a file is there that holds no {what}; name another")
