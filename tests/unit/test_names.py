"""The package on PyPI that is called `clipx` is another program: no text may advise to install it."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from clipx.doctor import software

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STRANGER = "clipx"
FOLDERS = ("clipx", "launch", "configs", "docs", "tests", "benchmarks", "examples", ".github")
# a requirement `clipx`, with extras or a version, as a word of its own: no path, no longer name
REQUIREMENT = re.compile(r"(?<![\w./@-])clipx(?=\[|[=<>~!]=|[\s'\"`),;]|$)(?!-)")
INSTALLERS = re.compile(
    r"(?:(?:pip3?|pipx|conda|mamba|poetry|rye|pdm)\s+(?:install|run|add)|uv\s+(?:pip\s+install|add|tool\s+install)|uvx)\b(.*)"
)


def advises(line: str) -> bool:
    """Whether a line says how to install a package called `clipx`, or names one with extras."""
    if re.search(r"(?<![\w.-])clipx\[", line):
        return True
    command = INSTALLERS.search(line)
    return bool(command and REQUIREMENT.search(re.split(r"[|;&]|`|\bthen\b|\bbe(?:cause|side)\b", command[1])[0]))


def texts() -> list[Path]:
    """Every text file of the repository; of an archive of it, those in its folders."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    names = [ROOT / name for name in listed.split("\0") if name]
    if not names:
        names = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*.*"))
    return [path for path in names if path.is_file() and not path.is_symlink() and b"\0" not in path.read_bytes()]


@pytest.mark.parametrize(
    "line",
    [
        "pip install clipx",
        'RUN pip install "clipx[s3]"',
        "uv pip install 'clipx==0.1'",
        "python -m pip install -U clipx # latest",
        "`pip install clipx`, then",
        "missing: install clipx[parquet]",
        "uvx clipx",
        "pip install torch clipx>=1",
    ],
)
def test_advice_to_install_a_stranger_s_code_is_found(line: str) -> None:
    assert advises(line)


@pytest.mark.parametrize(
    "line",
    [
        "pip install -e .",
        "pip install '.[s3]'",
        "pip install clipx-train[s3]",
        "pip install 'clipx-train[s3] @ git+https://example.org/clipx'",
        "pip install ./clipx",
        "pip install /src/clipx && clipx doctor",
        "pip uninstall clipx",
        "`pip install s3fs` for clipx",
        "clipx data index data/cc12m",
    ],
)
def test_other_lines_are_none(line: str) -> None:
    assert not advises(line)


def test_no_text_advises_it() -> None:
    own = Path(__file__).resolve()
    paths = [path for path in texts() if path.resolve() != own]
    assert len(paths) > 100
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if advises(line)
    ]
    assert found == []


def test_the_package_has_a_name_of_its_own_everywhere() -> None:
    assert PROJECT["name"] != STRANGER
    assert PROJECT["name"] == software._DISTRIBUTION
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    own = [line.split("[")[0] for line in extras if line.startswith("clipx")]
    assert own == [PROJECT["name"]] * len(own) != []
    assert PROJECT["scripts"] == {"clipx": "clipx.cli:main"}


def test_the_metadata_say_what_it_is() -> None:
    assert PROJECT["authors"]
    assert PROJECT["keywords"]
    assert "Typing :: Typed" in PROJECT["classifiers"]
    # a licence expression takes the place of its classifier (PEP 639)
    assert not any(line.startswith("License ::") for line in PROJECT["classifiers"])
