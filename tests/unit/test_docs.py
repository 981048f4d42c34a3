"""docs/architecture.md and CONTRIBUTING.md tell of the code as it is; the workflow and pre-commit run what people run.

`test_readme.py` holds for them too: commands, make targets and files that they name.
"""

import importlib
import re
import tomllib
from functools import reduce
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ARCHITECTURE, CONTRIBUTING = ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def section(document: Path, title: str) -> str:
    """What stands under a heading of the second level, up to the next one."""
    found = re.search(rf"^## {re.escape(title)}.*?\n(.*?)(?=^## |\Z)", document.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{document.name} has no section {title!r}"
    return found[1]


def code_block(text: str) -> list[str]:
    return re.findall(r"```\n(.*?)```", text, re.DOTALL)[0].splitlines()


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or ""):
                raise
            continue
        try:
            reduce(getattr, parts[end:], module)
        except AttributeError:
            return False
        return True
    return False


def reading_order() -> list[str]:
    return re.findall(r"^\d+\. `([\w./]+)`", section(ARCHITECTURE, "Reading order"), re.MULTILINE)


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("document", [ARCHITECTURE, CONTRIBUTING], ids=lambda path: path.name)
def test_dotted_names_are_there(document: Path) -> None:
    named = sorted(set(re.findall(r"`(clipx(?:\.\w+)+)", document.read_text())))
    assert named
    assert [name for name in named if not is_there(name)] == []


def test_a_name_that_is_gone_would_be_found() -> None:
    assert is_there("clipx.types.Batch.micro_batches")
    assert not is_there("clipx.types.Batch.micro_batch")
    assert not is_there("clipx.typos.Batch")


def test_what_a_line_says_of_a_file_stands_in_it() -> None:
    """Of a row or an item that begins with a file: the names beside it."""
    lines = re.findall(r"^(?:\| |\d+\. )`(clipx/[\w./]+)`(?: \| |: )(.*)$", ARCHITECTURE.read_text(), re.MULTILINE)
    assert len(lines) > 20
    missing = [
        f"{path}: {name}"
        for path, rest in lines
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", rest.split(" | ")[0])
        if not (ROOT / path).is_file() or not re.search(rf"\b{name}\b", (ROOT / path).read_text())
    ]
    assert missing == []


def test_the_picture_of_the_house_is_the_contract() -> None:
    drawn = [re.split(r" {2,}", line)[0] for line in code_block(section(ARCHITECTURE, "The house"))]
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["name"] == "Imports go down only"]
    assert drawn == [layer.replace("clipx.", "") for layer in layers]


def test_the_layout_names_every_room() -> None:
    lines = code_block(section(CONTRIBUTING, "How it is laid out"))
    named = {room for line in lines for room in re.findall(r"[\w/]+", re.split(r" {2,}", line)[0])}
    named |= {f"train/{line.split()[0]}" for line in lines if line.startswith(" ")}
    rooms = {path.parent for path in (ROOT / "clipx").glob("*/__init__.py")} | {
        path.with_suffix("") for path in (ROOT / "clipx").glob("*.py") if not path.stem.startswith("__")
    }
    rooms |= {path.parent for path in (ROOT / "clipx" / "train").glob("*/__init__.py")}
    paths = {str(room.relative_to(ROOT / "clipx")) for room in rooms}
    assert paths - {name.removeprefix("clipx/") for name in named} == set()


def test_the_reading_order_is_short_and_each_file_is_imported_by_one_before() -> None:
    files = reading_order()
    assert files[0] == "clipx/cli/__init__.py"
    assert files[-1] == "clipx/optim/optimizers.py"
    assert len(files) == len(set(files)) <= 18
    for place, path in enumerate(files[1:], 1):
        statement = re.compile(rf"^\s*from {re.escape(module_of(path))} import ", re.MULTILINE)
        assert any(statement.search((ROOT / before).read_text()) for before in files[:place]), path


@pytest.mark.parametrize("title", ["Words\n", "Words of fit runs"])
def test_a_glossary_has_at_most_15_words(title: str) -> None:
    rows = re.findall(r"^\| (?!word|-)([^|]+) \|", section(CONTRIBUTING, title), re.MULTILINE)
    assert 5 <= len(rows) == len(set(rows)) <= 15


def test_recipes_are_those_that_are_asked_for() -> None:
    recipes = re.findall(r"^\*\*An? (\w+)\.\*\*", section(ARCHITECTURE, "Recipes"), re.MULTILINE)
    assert recipes == ["loss", "objective", "tower", "fusion", "evaluation", "library", "export"]
    assert section(ARCHITECTURE, "Recipes").count("Forgotten: ") == len(recipes)


def test_the_workflow_runs_what_a_person_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    [job] = workflow["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("\nmake test")
    assert job["timeout-minutes"] > 0
    assert workflow["concurrency"]["cancel-in-progress"] is True
    [python] = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert PROJECT["project"]["requires-python"] == f">={python}"


def test_pre_commit_runs_the_programs_of_make_check() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}  # nothing is fetched
    assert {hook["language"] for hook in hooks} == {"system"}
    programs = {hook["entry"].split()[0] for hook in hooks}
    recipe = re.search(r"^check:.*?\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    assert programs == {f".venv/bin/{name}" for name in re.findall(r"\$\(BIN\)/([\w-]+)", recipe[1])}
    assert programs == {".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/lint-imports"}


def test_the_issue_form_is_one() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yaml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    assert all(item["type"] == "textarea" and item["attributes"]["label"] for item in form["body"])


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    bounds = dict(
        re.fullmatch(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)(?:;.*)?", requirement).groups()  # type: ignore[union-attr]
        for requirement in PROJECT["project"]["dependencies"]
    )
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert oldest.keys() == {name.lower() for name in bounds}
    for name, bound in bounds.items():
        assert f"{oldest[name.lower()]}.".startswith(f"{bound}."), f"{name}>={bound} and {oldest[name.lower()]}"
