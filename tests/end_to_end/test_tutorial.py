"""docs/tutorial.md, followed to the end: every line of its shell blocks, in this process, which has torch already."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from shard_files import png

from clipx import cli

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
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


def lines_of_shell() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return "".join(blocks).splitlines()


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0, line


def test_a_person_follows_it_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIPX_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    values: dict[str, str] = {}
    done: list[str] = []
    lines = iter(lines_of_shell())
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
            assert command.startswith("clipx "), line
            run(command, monkeypatch)
            done.append(command.split()[1])
    assert {"data", "train", "report", "classify", "zeroshot", "embed", "search", "export"} == set(done)
    for name in ("batch.png", "runs/mine/report.html", "classified.html", "classified.csv", "found.html"):
        assert os.path.getsize(tmp_path / name) > 1000, name
    assert (tmp_path / "exported" / "parity.json").is_file()
