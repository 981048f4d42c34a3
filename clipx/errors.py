"""The two ways in which clipx says no: what the person gave is wrong, or the run cannot go on.

Raised anywhere, printed by the command line as one line without a traceback (`--debug` shows it).
"""

from collections.abc import Iterable

from clipx.printable import printable, shown

_MAX_NAMED = 10
_MAX_LENGTH = 80  # of a name


class ClipxError(Exception):
    """A condition with a message for a person: the value, the rule, and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        """The message, fit to be shown wherever it goes: it may name what a stranger or a signed address holds."""
        return shown(super().__str__())


class InputError(ClipxError, ValueError):
    """Something the person gave (config, data, arguments) breaks a rule; exit code 2."""

    exit_code = 2


class RunError(ClipxError, RuntimeError):
    """A run cannot go on for a reason outside the input's form (data health, disk, numerics); exit code 1."""


def some_names(names: Iterable[str], count: int | None = None) -> str:
    """At most ten of `names`, long ones cut, in one line, joined by commas, and how many more there are.

    Args:
        count: how many there are; None means as many as `names`.
    """
    listed = list(names)
    named = [name if len(name) <= _MAX_LENGTH else f"{name[:_MAX_LENGTH]}..." for name in listed[:_MAX_NAMED]]
    total = len(listed) if count is None else count
    return ", ".join(map(printable, named)) + (f" and {total - len(named)} more" if total > len(named) else "")
