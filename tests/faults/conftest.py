"""Fixtures of the faults, and the table of what became of each."""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from faults.harness import Scenario, Undisturbed
from faults.processes import Starter, adopt_orphans, nothing_left
from tiny import write_scenes


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """Starts processes, whose orphans come to this one."""
    adopt_orphans()
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny synthetic set: train/ and the evaluation folders."""
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="session")
def undisturbed(scenes: Path, starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Runs that nothing happened to."""
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"), scenes, starter)


@pytest.fixture
def scenario(
    scenes: Path, starter: Starter, undisturbed: Undisturbed, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Scenario]:
    """A run of one process, until the test says otherwise; nothing of it may be left at the end."""
    scenario = Scenario(tmp_path, scenes / "train", starter, undisturbed)
    request.node.user_properties.append(("fault", scenario.row))
    with nothing_left(starter):
        yield scenario


@pytest.fixture
def shards(scenario: Scenario, scenes: Path) -> Path:
    """The scenario's own copy of the set, to be broken."""
    folder = scenario.folder / "shards"
    shutil.copytree(scenes / "train", folder)
    scenario.shards = folder
    return folder


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table: of each scenario its outcome, the steps that were trained twice, and the way back to the last step."""
    rows: dict[str, dict[str, Any]] = {}
    for report in chain.from_iterable(terminalreporter.stats.values()):
        found = dict(report.user_properties).get("fault") if isinstance(report, pytest.TestReport) else None
        if found is None:
            continue
        name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        if report.failed:
            rows[name] = {"outcome": "FAILED"}  # though it may have told an outcome before it did
        elif found and report.when == "teardown":
            rows.setdefault(name, found)
    if not rows:
        return
    width = max(map(len, rows))
    terminalreporter.section("faults: seconds are those from the next start, without imports, to the step before")
    terminalreporter.write_line(f"{'fault':{width}}  steps lost  seconds  outcome")
    for name, row in sorted(rows.items()):
        lost, seconds = row.get("lost"), row.get("seconds")
        figures = f"{'-' if lost is None else lost:>10}  {'-' if seconds is None else f'{seconds:.1f}':>7}"
        terminalreporter.write_line(f"{name:{width}}  {figures}  {row['outcome']}")
