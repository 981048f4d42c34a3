"""clipx.launching.files: the files of launch/ as a part of the package."""

import os
import tomllib
from pathlib import Path

import pytest

from clipx.errors import InputError
from clipx.launching.files import LAUNCH_FILES, copy_files, slurm_sizes

ROOT = Path(__file__).parents[3]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_they_are_those_of_the_repository() -> None:
    assert LAUNCH_FILES == ROOT / "launch"
    assert {"torchrun.sh", "skypilot.yaml", "kubernetes/jobset.yaml", "accelerate/ddp.yaml"} <= names(LAUNCH_FILES)


def test_they_are_package_data() -> None:
    link = ROOT / "clipx" / "launch_files"
    assert os.readlink(link) == "../launch"  # so that a moved or copied repository keeps it
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "launch_files/**" in settings["tool"]["setuptools"]["package-data"]["clipx"]


def test_a_copy_for_a_person_who_adapts_them(tmp_path: Path) -> None:
    copy_files(tmp_path / "mine")
    assert names(tmp_path / "mine") == names(LAUNCH_FILES)
    assert os.access(tmp_path / "mine" / "torchrun.sh", os.X_OK)
    with pytest.raises(InputError, match="is there already"):
        copy_files(tmp_path / "mine")


def test_a_copy_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/mine: cannot be written: Not a directory"):
        copy_files(tmp_path / "file" / "mine")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("#SBATCH --nodes=2\n#SBATCH --gpus-per-node=8\n", (2, 8)),
        ("#SBATCH --nodes 3\n##SBATCH --gpus-per-node=8\n", (3, 1)),
        ("#!/bin/bash\n", (1, 1)),
    ],
)
def test_sizes_of_a_slurm_file(tmp_path: Path, lines: str, expected: tuple[int, int]) -> None:
    (tmp_path / "train.sbatch").write_text(lines)
    assert slurm_sizes(tmp_path / "train.sbatch") == expected
