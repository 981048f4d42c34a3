"""Runs a launcher: in place of this process, or under it where the launcher's exit code does not say enough."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from clipx.errors import InputError
from clipx.launching.commands import STOP_SIGNALS, LaunchCommand

AGAIN = 85
"""Exit code: saved and stopped on request, start it again."""


def become(command: LaunchCommand) -> NoReturn:
    """Replaces this process by the launcher, which then has its terminal, its signals and its exit code.

    Raises:
        InputError: the launcher is not on this machine.
    """
    program = command.arguments[0]
    if shutil.which(program) is None:
        raise InputError(f"{program} is not installed here; start on a machine that has it, or see --dry-run")
    os.execvpe(program, command.arguments, {**os.environ, **command.environment})


def supervise(command: LaunchCommand, run_dir: Path) -> int:
    """Runs the launcher to its end, passes signals on to it, and returns the run's exit code.

    accelerate launch ends with 0 or 1; what happened is the run's own word, in status.json. After a failure it counts
    if it is of this start; a run that was asked to stop and has not got as far as a word has lost nothing.
    """
    before = _written_at(run_dir)
    launcher = subprocess.Popen(command.arguments, env={**os.environ, **command.environment})
    asked_to_stop = False

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        if number != signal.SIGINT:  # which a terminal sends to both
            launcher.send_signal(number)

    handlers = {name: signal.signal(signal.Signals[name], pass_on) for name in STOP_SIGNALS}
    try:
        code = launcher.wait()
    finally:
        for name, handler in handlers.items():
            signal.signal(signal.Signals[name], handler)
    written = _written_at(run_dir)
    if written is not None and (code == 0 or written != before):
        return _exit_code(json.loads((run_dir / "status.json").read_text()), code)
    return AGAIN if code and asked_to_stop else code


def _exit_code(word: Mapping[str, object], launchers: int) -> int:
    """The run's own, from its status.json, where it says more than the launcher's."""
    if word["status"] == "again":
        return AGAIN
    return 2 if launchers and word.get("exit_code") == 2 else launchers


def _written_at(run_dir: Path) -> int | None:
    """Time of status.json, in ns, on the clock of its file system: a changed one is of this start."""
    try:
        return (run_dir / "status.json").stat().st_mtime_ns
    except OSError:
        return None
