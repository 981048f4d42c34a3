"""What people install: the wheel, built from the files that launch/Dockerfile copies, and the Dockerfile itself."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "launch" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(kind: str) -> list[list[str]]:
    """The words of each instruction of one kind; a line that ends with a backslash goes on."""
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{kind} ")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a folder that has nothing but what the image's folder /src has."""
    source, out = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("wheel")
    for *names, target in instructions("COPY"):
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, source / target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy(ROOT / name, source / target)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = out.iterdir()
    return path


def shipped(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_has_the_code_and_the_files_beside_it(wheel: Path) -> None:
    assert wheel.name.startswith(f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}-py3-none-any")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"clipx/launch_files/{name}" for name in shipped(ROOT / "launch")} <= names
    assert {f"clipx/config_files/{name}" for name in shipped(ROOT / "configs")} <= names
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "clipx").rglob("*.py")}
    assert code <= names
    assert {"clipx/py.typed", "clipx/demo/demo.yaml", "clipx/data/vocabulary/clip_merges.txt.gz"} <= names
    assert {name.split("/")[0] for name in names} == {"clipx", wheel.name.split("-py3")[0] + ".dist-info"}


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        head = archive.read(name).decode().split("\n\n")[0].splitlines()
    fields = dict(line.split(": ", 1) for line in head if ": " in line)
    assert (fields["Name"], fields["Version"], fields["License-Expression"]) == (
        PROJECT["name"],
        PROJECT["version"],
        "Apache-2.0",
    )
    assert "Author" in fields
    assert "Project-URL" in fields
    needed = [Requirement(line.removeprefix("Requires-Dist: ")) for line in head if line.startswith("Requires-Dist")]
    always = {one.name for one in needed if "extra" not in str(one.marker)}
    assert {"torch", "wandb", "tensorboard", "simplejpeg"} <= always  # what the user asked for is no extra
    assert not any(one.name.startswith("clipx") for one in needed if "extra" not in str(one.marker))


def test_installed_it_finds_its_configs_and_launch_files(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import clipx; print(clipx.__file__)\n"
        "from clipx.launching.files import LAUNCH_FILES; print((LAUNCH_FILES / 'torchrun.sh').is_file())\n"
        "from clipx.config.load import load_config; print(load_config(['tiny', 'overlays/patch_drop']).run_dir)"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [str(tmp_path / "site" / "clipx" / "__init__.py"), "True", "runs/tiny"]


def test_the_pip_line_of_the_image_can_be_run() -> None:
    [line] = [words for words in instructions("RUN") if words[:2] == ["pip", "install"]]
    copied = {name.rpartition("/")[2] for *names, _ in instructions("COPY") for name in names}
    assert line[line.index("--constraint") + 1] in copied
    own = re.fullmatch(r"\.\[([\w,]+)\]", line[-1])
    assert own, "the image installs the files that were copied, no package of that name from elsewhere"
    assert set(own[1].split(",")) <= PROJECT["optional-dependencies"].keys()
    assert {"pyproject.toml", "clipx", PROJECT["readme"], *PROJECT["license-files"][:1]} <= copied


def test_the_python_of_the_image_is_one_that_is_tested() -> None:
    [[image]] = instructions("FROM")
    minimum = PROJECT["requires-python"].removeprefix(">=")
    assert image.startswith(f"python:{minimum}-")


def test_the_files_for_kubernetes_run_this_image() -> None:
    manifests = "".join(path.read_text() for path in (ROOT / "launch" / "kubernetes").glob("*.yaml"))
    [tag] = re.findall(r"docker build -f launch/Dockerfile -t (\S+) \.", DOCKERFILE.read_text())
    assert tag.endswith(f"/clipx:{PROJECT['version']}")
    assert set(re.findall(r"image: (\S+)", manifests)) == {tag}
    assert manifests.count("launch/Dockerfile") == 2


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
