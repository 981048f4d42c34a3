"""The documents cannot rot: commands parse, files named are there, figures agree with the configs."""

import json
import os
import re
import shlex
import tomllib
from glob import glob
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from clipx.cli import app
from clipx.config.load import load_config

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/python.md",
        "docs/captions.md",
        "docs/chosen_batches.md",
        "docs/teachers.md",
        "docs/finetune.md",
        "docs/tutorial.md",
        "docs/reports.md",
        "docs/classify.md",
        "docs/fit.md",
        "docs/search.md",
        "docs/recipes.md",
        "docs/extend/loss.md",
        "docs/extend/tower.md",
        "docs/extend/evaluator.md",
        "CHANGELOG.md",
    )
]
README = DOCUMENTS[0].read_text()


def code_lines(text: str) -> list[str]:
    """Every line of a shell block, and every stretch of code inside a line."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = re.findall(r"`([^`]+)`", rest)
    return [" ".join(line.split("#")[0].split()) for line in [*"".join(blocks).splitlines(), *inline]]


def clipx_commands() -> list[str]:
    return sorted(
        {line for document in DOCUMENTS for line in code_lines(document.read_text()) if line.startswith("clipx ")}
    )


def parse(line: str) -> None:
    """Parses a command as typer would, without running it; of a usage line, the marks of what is optional go first."""
    words = re.sub(r" \.\.\.|\[(?=--|OVERLAY|key=)|(?<=FILE|alue)\]", "", line).split()[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words:
        name = words.pop(0)
        if name.startswith("-"):  # not parsed: it would be done
            assert any(name in option.opts for option in command.params), f"{line!r}: there is no option {name!r}"
            return
        assert name in command.commands, f"{line!r}: there is no command {name!r}"
        command = command.commands[name]
    if words:  # a bare `clipx data index` only names the command
        command.make_context(line, words)


@pytest.mark.parametrize("line", clipx_commands())
def test_command_parses(line: str) -> None:
    parse(line)


def test_an_unknown_option_or_command_would_be_found() -> None:
    with pytest.raises(typer.TyperException):
        parse("clipx zeroshot MODEL DIR --jsno FILE")
    with pytest.raises(AssertionError, match="no command"):
        parse("clipx zerosoht MODEL DIR")
    with pytest.raises(AssertionError, match="no option"):
        parse("clipx --instal-completion")


def test_every_command_stands_in_the_table() -> None:
    named = {tuple(line.split()[1:3]) for line in clipx_commands()}
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        for inner in getattr(command, "commands", {}):
            assert (name, inner) in named
        assert any(words[0] == name for words in named)


@pytest.mark.parametrize(
    "line", [line for line in code_lines(README) if line.startswith("launch/torchrun.sh configs/")]
)
def test_launch_line_is_a_valid_config(line: str) -> None:
    script, *arguments = shlex.split(line)
    assert (ROOT / script).is_file()
    load_config([ROOT / name for name in arguments if "=" not in name], [word for word in arguments if "=" in word])


def test_the_environment_is_entered_before_it_is_used() -> None:
    lines = [line.strip() for line in "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).splitlines()]
    first_use = next(number for number, line in enumerate(lines) if line.startswith(("clipx ", "launch/")))
    assert ". .venv/bin/activate" in lines[:first_use]
    # img2dataset wants an older webdataset than clipx
    assert not any("pip install img2dataset" in line for line in lines)


def test_packages_state_what_the_code_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = project["tool"]["setuptools"]["package-data"]["clipx"]
    assert "py.typed" in shipped
    assert all(any(map(os.path.isfile, glob(f"{ROOT}/clipx/{name}", recursive=True))) for name in shipped)
    # the first version with clip/image_processing_pil_clip.py, which the export imports
    assert "transformers>=5.4" in project["project"]["dependencies"]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    used = {
        line.split()[1]
        for document in DOCUMENTS
        for line in code_lines(document.read_text())
        if line.startswith("make ")
    }
    assert used >= {"demo", "test"}
    for target in used:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"there is no `make {target}`"


@pytest.mark.parametrize("document", DOCUMENTS[:-1], ids=lambda path: path.name)
def test_files_named_are_there(document: Path) -> None:
    text = document.read_text()
    named = re.findall(r"\b(?:tests|configs|launch|benchmarks|clipx|docs|examples)/[\w./]*\w", text)
    linked = re.findall(r"\]\(([\w./]+)\)", text)
    assert named or linked
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()]
    missing += [name for name in linked if not (document.parent / name).is_file()]
    assert missing == []


@pytest.mark.parametrize(
    "name", ["vit_b32", *(pytest.param(n, marks=pytest.mark.full) for n in ("vit_b16", "vit_l14"))]
)
def test_planned_memory_and_hours_are_those_of_plan(name: str, tmp_path: Path) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `configs/{name}") and "planned" in line)
    path, gpus, memory, hours = re.findall(
        r"`(configs/\S+)`.*\| (\d+) H100 \| (\d+) GB, planned \| ([\d.]+), planned", row
    )[0]
    arguments = ["plan", str(ROOT / path), "--gpus", gpus, "--gpu", "h100", "--json", str(tmp_path / "plan.json")]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    planned = json.loads((tmp_path / "plan.json").read_text())["asked"]
    parts = planned["phases"][0]["memory"]["parts"]
    assert sum(parts.values()) / 1e9 == pytest.approx(float(memory), rel=0.03)
    assert planned["days"] * 24 == pytest.approx(float(hours), rel=0.02)


def test_table_of_configs_agrees_with_them() -> None:
    rows = dict(re.findall(r"^\| `(configs/[\w.]+)` \|(.*)\|$", README, re.MULTILINE))
    assert set(rows) == {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    for name, row in rows.items():
        config = load_config([ROOT / name])
        pairs, batch = row.split("|")[1:3]
        number, unit = pairs.split()
        seen = float(number) * {"M": 1e6, "B": 1e9}[unit]
        assert seen == pytest.approx(config.num_steps * config.global_batch_size, rel=0.1), name
        assert int(batch.replace(",", "")) == config.global_batch_size, name
