"""docs/tutorial.md, followed to the end: every line of its shell blocks."""

import os
import re
from pathlib import Path

import pytest
from pages import run_line, shell_lines, without_launcher
from shard_files import png

COLOURS = {"red": 0xE0, "green": 0xD000, "blue": 0xC00000}


def write_pictures(folder: Path) -> None:
    """Pictures with a text beside each, and others in folders of their class."""
    for colour, value in COLOURS.items():
        for number in range(12):
            path = folder / "captioned" / f"{colour}_{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(value + 8 * number, size=48))
            path.with_suffix(".txt").write_text(f"a {colour} square, number {number}\n")
        for part, numbers in (("train", range(12, 24)), ("test", range(24, 28))):
            for number in numbers:
                path = folder / "labelled" / part / colour / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(value + number, size=48))


def test_a_person_follows_it_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_launcher(tmp_path / "cache", monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    values: dict[str, str] = {}
    done: list[str] = []
    lines = iter(shell_lines("tutorial.md"))
    for line in lines:
        if given := re.match(r"(\w+)=(\S+)", line):
            values[given[1]] = given[2]
        elif here := re.fullmatch(r"cat > (\S+) << 'YAML'", line):
            content = "\n".join(iter(lambda: next(lines), "YAML"))
            short = content.replace("steps: 800", "steps: 3").replace("batch_size: 128", "batch_size: 16")
            assert short.replace("steps: 3", "steps: 800").replace("batch_size: 16", "batch_size: 128") == content
            Path(here[1]).write_text(short.replace("warmup_steps: 60", "warmup_steps: 1"))
        elif line:
            command = re.sub(r"\$(\w+)", lambda name: values[name[1]], line)
            run_line(command, monkeypatch)
            done.append(command.split()[1])
    assert {"data", "train", "report", "compare", "classify", "zeroshot", "embed", "search", "export"} == set(done)
    for name in ("batch.png", "runs/mine/report.html", "runs.html", "classified.html", "classified.csv", "found.html"):
        assert os.path.getsize(tmp_path / name) > 1000, name
    assert (tmp_path / "exported" / "parity.json").is_file()
