"""clipx.launching.start: this process becomes the launcher."""

import os
from typing import Any

import pytest

from clipx.errors import InputError
from clipx.launching.commands import LaunchCommand
from clipx.launching.start import become


def test_the_launcher_takes_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *call: called.append(call))
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("CHANGED", "1")
    become(LaunchCommand(("bash", "a"), {"CHANGED": "2"}))
    program, arguments, environment = called[0]
    assert (program, arguments) == ("bash", ("bash", "a"))
    assert (environment["KEPT"], environment["CHANGED"]) == ("1", "2")


def test_a_launcher_that_is_not_here() -> None:
    with pytest.raises(InputError, match="sbatch-of-elsewhere is not installed here; start on a machine that has it"):
        become(LaunchCommand(("sbatch-of-elsewhere", "a"), {}))
