"""The shell blocks of a page of docs/, and running their lines in this process, which has torch already."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from clipx import cli

DOCS = Path(__file__).parents[1] / "docs"


def shell_lines(page: str) -> list[str]:
    """The lines of all shell blocks, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return "".join(blocks).splitlines()


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs one line that begins with clipx; asserts that it ends well."""
    assert line.startswith("clipx "), line
    monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0, line


def without_launcher(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a person at a shell, with a cache of its own."""
    for name in ("CLIPX_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
