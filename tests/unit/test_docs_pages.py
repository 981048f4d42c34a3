"""Every code block of docs/ runs, but for an upload, and the site builds without a warning."""

import contextlib
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import run_line, shell_lines, without_launcher
from tiny import tiny_config, write_scenes

import clipx
from clipx.config.load import load_config
from clipx.train.trainer import run

ROOT = Path(__file__).parents[2]
PAGES = ("python.md", "extend/loss.md", "extend/tower.md", "extend/evaluator.md")
OF_A_RUN = ("reports.md", "classify.md", "search.md", "teachers.md")  # pages with commands for the run of runs/scenes
FIT = "fit.md"
SHORTER = {"clipx data synth": "--train 60 --eval-per-class 1", "clipx fit": "--epochs 2 track.wandb=disabled"}
IN_OTHER_TESTS = {"tutorial.md", FIT}  # tests/end_to_end/test_tutorial.py, and below
UPLOADS = {"finetune.md"}  # tests/unit/export/test_push.py asks a hub of its own


def blocks(page: Path) -> list[tuple[str, str]]:
    """Each block of Python with what it prints."""
    found = re.findall(r"```(python|text)\n(.*?)```", page.read_text(), re.DOTALL)
    pairs = zip(found, [*found[1:], ("", "")], strict=True)
    return [(code, after if kind == "text" else "") for (first, code), (kind, after) in pairs if first == "python"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_and_prints_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for code, printed in blocks(ROOT / "docs" / name):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, name, "exec"), names)
        assert out.getvalue() == printed, code


def pages_with(language: str) -> set[str]:
    folder = ROOT / "docs"
    return {str(path.relative_to(folder)) for path in folder.rglob("*.md") if f"```{language}\n" in path.read_text()}


def test_no_page_is_left_out() -> None:
    assert pages_with("python") - IN_OTHER_TESTS == set(PAGES)
    assert pages_with("sh") - IN_OTHER_TESTS - UPLOADS == set(OF_A_RUN)
    assert pages_with("yaml") == {"extend/tower.md", "extend/loss.md", FIT}


def test_the_commands_that_look_at_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_launcher(tmp_path / "cache", monkeypatch)
    monkeypatch.chdir(tmp_path)
    scenes = write_scenes(tmp_path / "data" / "scenes")
    evaluated = f"evaluate.seen={{type: zeroshot, data: '{scenes / 'wds_scenes'}'}}"
    for name, rate in (("scenes", 1e-3), ("higher_rate", 3e-3)):
        run(tiny_config(tmp_path / "runs" / name, scenes / "train", "steps=2", f"optim.lr={rate}", evaluated))
    for line in [line for page in OF_A_RUN for line in shell_lines(page) if line]:
        run_line(line, monkeypatch)
    for name in ("runs/scenes/report.html", "comparison.html", "classified.html", "found.html"):
        assert (tmp_path / name).stat().st_size > 1000, name


def test_a_table_is_followed_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_launcher(tmp_path / "cache", monkeypatch)
    monkeypatch.chdir(tmp_path)
    run(tiny_config(tmp_path / "runs" / "scenes", write_scenes(tmp_path / "scenes") / "train", "steps=2"))
    for line in shell_lines(FIT):
        shorter = [more for command, more in SHORTER.items() if line.startswith(command)]
        run_line(" ".join([line, *shorter]), monkeypatch)
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 48
    assert (tmp_path / "exported" / "parity.json").is_file()
    test_a_page_runs_and_prints_what_it_says(FIT, tmp_path, monkeypatch)
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / FIT).read_text(), re.DOTALL)
    (tmp_path / "fit.yaml").write_text(block)
    assert isinstance(clipx.load_config(tmp_path / "fit.yaml"), clipx.FitConfig)


def test_the_towers_of_the_page_are_a_config(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "extend" / "tower.md").read_text(), re.DOTALL)
    (tmp_path / "towers.yaml").write_text(block)
    config = load_config(["tiny", tmp_path / "towers.yaml"], [])
    assert config.model.image.name == yaml.safe_load(block)["model"]["image"]["name"]


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert (tmp_path / "site" / "commands" / "data_make.html") in pages
    for page in pages:
        content = page.read_text()
        assert not re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"https?:", content), page
        assert not re.findall(r"<link[^>]*rel=\"(?:stylesheet|preconnect)\"[^>]*href=\"https?:", content), page


def test_a_page_per_command_says_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    site_pages = importlib.import_module("site_pages")
    pages = {name: site_pages.command_page(name, command) for name, command in site_pages.commands()}
    assert {"train", "zeroshot", "data make", "launch slurm"} <= pages.keys()
    for name, page in pages.items():
        assert page.startswith(f"# clipx {name}\n"), name
    assert "clipx export MODEL [OPTIONS]" in pages["export"]
    assert "| `--dtype` `fp32|fp16` | `fp32` |" in pages["export"]
    assert "| `--to` `DIR` | needed |" in pages["export"]


def test_the_config_of_distillation_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "extend" / "loss.md").read_text(), re.DOTALL)
    (tmp_path / "taught.yaml").write_text(block)
    distill = load_config(["tiny", tmp_path / "taught.yaml"], []).loss.terms.distill
    assert distill is not None
    assert list(distill.teachers) == ["large", "small"]
