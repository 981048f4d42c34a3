"""What a full disk does to metrics.jsonl: nothing is lost while the process lives, and nothing stands twice."""

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipx.storage.json_rows import read_rows
from clipx.train.metrics.json_lines import JsonLines


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files of this process may grow to a size in bytes; what is written beyond that fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_wait_for_space_and_stand_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = JsonLines(tmp_path / "rows.jsonl")
    lines.append([{"step": 1, "loss": float("nan")}])
    size = lines.path.stat().st_size
    with caplog.at_level(logging.WARNING), largest_file(size + 5):
        lines.append([{"step": 2}])
        lines.append([{"step": 3}])
        assert lines.path.stat().st_size == size
    (said,) = caplog.messages
    assert said.startswith(f"cannot write {lines.path} (")
    lines.append([{"step": 4}])
    assert read_rows(lines.path) == [{"step": 1, "loss": None}, {"step": 2}, {"step": 3}, {"step": 4}]
    assert caplog.messages[1:] == [f"{lines.path} is written again, with 2 lines that had to wait"]
    lines.append([])
    assert len(caplog.messages) == 2


def test_a_torn_line_is_ended_and_passed_over(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "rows.jsonl")
    lines.path.write_text('{"step": 1}\n{"st')
    lines.append([{"step": 2}])
    lines.path.open("a").write("7\n[1]\n")
    assert read_rows(lines.path) == [{"step": 1}, {"step": 2}]
