"""Writes to standard error never fail, and what was lost is said when it can be."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipx.storage.standard_error import surviving_stderr


@contextmanager
def stderr_to(descriptor: int) -> Iterator[None]:
    """sys.stderr as Python opens it, on another descriptor."""
    with open(descriptor, "w", buffering=1, closefd=False) as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with surviving_stderr():
            yield


def test_a_full_disk_loses_lines_and_says_so_when_there_is_space(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with (tmp_path / "log").open("wb") as log, stderr_to(full):
        print("lost", file=sys.stderr, flush=True)
        print("lost too", file=sys.stderr)
        os.dup2(log.fileno(), full)
        print("näher", file=sys.stderr)
        print("and on, ", end="", file=sys.stderr)
        print("in a line", file=sys.stderr)
    assert (tmp_path / "log").read_text().splitlines() == [
        "",
        "clipx: 2 writes to standard error are lost ([Errno 28] No space left on device)",
        "näher",
        "and on, in a line",
    ]
    os.close(full)


def test_a_reader_that_is_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with stderr_to(writer):
        print("x", file=sys.stderr, flush=True)
        assert not sys.stderr.isatty()
    os.close(writer)


def test_a_stream_of_python_alone_gets_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with surviving_stderr(), surviving_stderr():
        print("x", file=sys.stderr)
    assert sys.stderr is stream
    assert stream.getvalue() == "x\n"


@pytest.mark.parametrize("end", ["2>/dev/full", "2>&-", "2>&- <&- >&-"])
def test_a_process_keeps_its_exit_code_and_its_files(tmp_path: Path, end: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from clipx.storage.standard_error import surviving_stderr\n"
        "with surviving_stderr():\n"
        "    print('x', file=sys.stderr, flush=True)\n"
        f"    with open({str(tmp_path / 'data')!r}, 'w') as file:\n"
        "        assert file.fileno() > 2\n"
        "sys.exit(85)\n"
    )
    command = f"'{sys.executable}' '{program}' {end}"
    assert subprocess.run(command, shell=True, check=False).returncode == 85  # our own words
