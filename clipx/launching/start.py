"""Runs a launcher in place of this process."""

import os
import shutil
from typing import NoReturn

from clipx.errors import InputError
from clipx.launching.commands import LaunchCommand


def become(command: LaunchCommand) -> NoReturn:
    """Replaces this process by the launcher, which then has its terminal, its signals and its exit code.

    Raises:
        InputError: the launcher is not on this machine.
    """
    program = command.arguments[0]
    if shutil.which(program) is None:
        raise InputError(f"{program} is not installed here; start on a machine that has it, or see --dry-run")
    os.execvpe(program, command.arguments, {**os.environ, **command.environment})
