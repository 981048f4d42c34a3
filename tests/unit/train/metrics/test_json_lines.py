"""What full disks and resumes do to metrics.jsonl and samples.jsonl, however long the files are."""

import json
import logging
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipx.storage.json_rows import read_rows
from clipx.train.metrics import json_lines
from clipx.train.metrics.json_lines import JsonLines, drop_after
from clipx.train.run_folder import check_folder


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


def test_a_full_disk_does_not_fill_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "_MAX_WAITING", 40)
    lines = JsonLines(tmp_path / "rows.jsonl")
    with largest_file(5):
        for step in range(1, 6):
            lines.append([{"step": step}])  # 12 bytes
        lines.append([{"step": 6, "samples": [0] * 100}])
    lines.append([{"step": 7}])
    assert [row["step"] for row in read_rows(lines.path)] == [6, 7], "the newest line is kept, however long"
    assert caplog.messages[1:] == [
        f"{lines.path} is written again, with 1 lines that had to wait; 5 older ones were too many to keep"
    ]
    with largest_file(lines.path.stat().st_size + 5):
        lines.append([{"step": 8}])
    lines.append([])
    assert caplog.messages[3:] == [f"{lines.path} is written again, with 1 lines that had to wait"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', '{"step": 1}\n{"step": 2}\n'),
        ('{"step": 1}\n{"step": 2}\n', '{"step": 1}\n{"step": 2}\n'),
        ('{"step": 1}\n{"step": 2}', '{"step": 1}\n{"step": 2}'),
        ('{"step": 1}\n{"st\n{"step": 2}\n{"step": 3, "loss', '{"step": 1}\n{"st\n{"step": 2}\n'),
        ('{"step": 2}\n\0\0\0\0', '{"step": 2}\n'),
        ('{"step": 3}\n{"step": 4}\n', ""),
        ('{"st', ""),
        ("", ""),
    ],
)
@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_steps_that_come_again_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kept: str, block: int
) -> None:
    monkeypatch.setattr("clipx.storage.json_rows._BLOCK", block)
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    drop_after(path, 2)
    assert path.read_text() == kept
    drop_after(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_a_file_larger_than_memory_is_looked_at_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    ids = list(range(10_000))
    with path.open("w") as file:
        file.writelines(json.dumps({"step": step, "batch": step, "samples": ids}) + "\n" for step in range(1, 301))
    tracemalloc.start()
    try:
        check_folder(tmp_path)
        drop_after(path, 298)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(path.read_text().splitlines()) == 298
    assert peak < 5_000_000 < path.stat().st_size
