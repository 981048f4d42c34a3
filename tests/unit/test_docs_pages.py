"""Every code block of docs/ runs, and the site builds without a warning."""

import contextlib
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("python.md", "extend/loss.md", "extend/tower.md", "extend/evaluator.md")
IN_OTHER_TESTS = {"tutorial.md"}  # tests/end_to_end/test_tutorial.py


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


def test_no_page_with_python_is_left_out() -> None:
    folder = ROOT / "docs"
    with_python = {str(path.relative_to(folder)) for path in folder.rglob("*.md") if "```python" in path.read_text()}
    assert with_python - IN_OTHER_TESTS == set(PAGES)


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
