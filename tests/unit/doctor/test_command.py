"""`clipx doctor` as a person calls it: arguments, output, exit codes; the checks themselves are replaced."""

import json
from pathlib import Path

import pytest
import typer
from tiny import CONFIG

from clipx.cli.doctor import doctor
from clipx.doctor import run_checks as module
from clipx.doctor.finding import Finding, Verdict
from clipx.doctor.run_checks import Report
from clipx.errors import InputError


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, Path]]:
    """What `run_checks` was called with; the report is a warning, or a problem where a config was given."""
    calls: list[tuple[object, Path]] = []

    def run_checks(config: object, *, folder: Path, announce: object) -> Report:
        calls.append((config, folder))
        verdict = Verdict.WARNING if config is None else Verdict.PROBLEM
        return Report([Finding("x", "1", verdict, "do", area="data")], ["a"], is_main=True, hung=False)

    monkeypatch.setattr(module, "run_checks", run_checks)
    return calls


def _run(*arguments: str, **options: Path) -> int:
    with pytest.raises(typer.Exit) as end:
        doctor(list(arguments), **options)
    return end.value.exit_code


def test_a_warning_is_0_and_the_working_folder_is_measured(
    seen: list[tuple[object, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(json_file=tmp_path / "new" / "d.json") == 0
    assert seen == [(None, Path.cwd())]
    assert capsys.readouterr().out.startswith("warning  data        x: 1 -> do\n1 warning; ")
    assert json.loads((tmp_path / "new" / "d.json").read_text())["findings"][0]["name"] == "x"
    assert _run(path=tmp_path) == 0
    assert seen[1] == (None, tmp_path)


def test_a_file_that_cannot_be_written_is_bad_input(seen: list[tuple[object, Path]]) -> None:
    with pytest.raises(InputError, match=r"--json /proc/x/y: cannot be written: "):
        doctor([], json_file=Path("/proc/x/y"))


def test_a_problem_is_1(seen: list[tuple[object, Path]], tmp_path: Path) -> None:
    assert _run(str(CONFIG), "seed=4") == 1
    assert seen[0][0].seed == 4


@pytest.mark.parametrize(
    ("arguments", "path", "message"),
    [
        (["seed=4"], None, "'seed=4': overrides need a config file"),
        (["nope.yaml"], None, "nope.yaml: cannot read the config file"),
        ([str(CONFIG)], Path(), "goes without a config"),
        ([], Path("nope"), "--path nope is no folder"),
    ],
)
def test_bad_input_is_refused_before_anything_is_looked_at(
    seen: list[tuple[object, Path]], arguments: list[str], path: Path | None, message: str
) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        doctor(arguments, path=path)
    assert seen == []


def test_other_ranks_say_only_that_they_are_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Finding("ranks", "not all are here", Verdict.PROBLEM, "start all", area="ranks")
    other = Finding("x", "1", Verdict.OK, area="data")
    monkeypatch.setattr(module, "run_checks", lambda *_, **__: Report([lost, other], [], is_main=False, hung=False))
    assert _run() == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "clipx: ranks: not all are here; start all\n")
