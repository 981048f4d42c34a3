"""`clipx launch`: what is checked, what --dry-run prints, what is started."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import CONFIG
from typer.testing import CliRunner, Result

from clipx.cli.launch import launch_app
from clipx.errors import InputError
from clipx.launching.files import LAUNCH_FILES, slurm_sizes


@pytest.fixture(autouse=True)
def no_launcher_s_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NNODES", "NPROC_PER_NODE", "PET_NNODES", "PET_NPROC_PER_NODE", "MASTER_ADDR", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def launch(*arguments: str) -> Result:
    return CliRunner().invoke(launch_app, [arguments[0], str(CONFIG), *arguments[1:]])


class TestDryRun:
    def test_slurm_takes_sizes_from_its_file(self) -> None:
        nodes, gpus = slurm_sizes(LAUNCH_FILES / "slurm" / "train.sbatch")
        done = launch("slurm", f"global_batch_size={64 * nodes * gpus}", "--dry-run")
        assert (done.exit_code, done.stderr) == (0, "")
        python, *command = shlex.split(done.stdout)
        assert python == f"PYTHON={sys.executable}"
        file = str(LAUNCH_FILES / "slurm" / "train.sbatch")
        overrides = [f"global_batch_size={64 * nodes * gpus}"]
        assert command == ["sbatch", f"--nodes={nodes}", f"--gpus-per-node={gpus}", file, str(CONFIG), *overrides]

    def test_slurm_with_options(self) -> None:
        sizes = ("--nodes", "3", "--gpus-per-node", "4")
        done = launch("slurm", *sizes, "--sbatch", "-p a100 --comment='a b'", "--torchrun", "--dry-run")
        _, *command = shlex.split(done.stdout)
        file = str(LAUNCH_FILES / "slurm" / "torchrun.sbatch")
        expected = ["--nodes=3", "--gpus-per-node=4", "-p", "a100", "--comment=a b", file, str(CONFIG)]
        assert command == ["sbatch", *expected]

    def test_torchrun(self) -> None:
        done = launch("torchrun", "--nodes", "2:4", "--gpus-per-node", "1", "seed=1", "--dry-run")
        assert (LAUNCH_FILES / "torchrun.sh").is_file()
        variables = f"NNODES=2:4 NPROC_PER_NODE=1 PYTHON={sys.executable}"
        assert done.stdout == f"{variables} bash {LAUNCH_FILES}/torchrun.sh {CONFIG} seed=1\n"

    def test_accelerate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NPROC_PER_NODE", "3")
        done = launch("accelerate", "--accelerate", "--gpu_ids=1,2,3", "--dry-run")
        command = shlex.split(done.stdout)
        assert "CLIPX_EXIT_CODE_AGAIN=0" in command
        assert command[command.index("--num_processes=3") :] == [
            "--num_processes=3",
            "--gpu_ids=1,2,3",
            *("-m", "clipx", "train", str(CONFIG)),
        ]


@pytest.mark.parametrize("launcher", ["slurm", "torchrun", "accelerate"])
class TestRefused:
    def test_a_batch_that_does_not_fall_evenly(self, launcher: str) -> None:
        done = launch(launcher, "--nodes", "1", "--gpus-per-node", "7", "--dry-run")
        assert isinstance(done.exception, InputError)
        expected = "global_batch_size=24 is not divisible by the 7 processes; nearest that are: 21, 28"
        assert str(done.exception) == expected

    def test_a_config_that_is_wrong(self, launcher: str) -> None:
        done = launch(launcher, "--gpus-per-node", "1", "seeed=1", "--dry-run")
        assert isinstance(done.exception, InputError)
        assert str(done.exception) == "seeed=1: unknown key; the nearest known is seed"


@pytest.mark.parametrize("launcher", ["slurm", "accelerate"])
def test_only_torchrun_is_elastic(launcher: str) -> None:
    done = launch(launcher, "--nodes", "2:4", "--gpus-per-node", "1", "--dry-run")
    assert isinstance(done.exception, InputError)
    assert "nodes=2:4" in str(done.exception)
    assert "use `clipx launch torchrun`" in str(done.exception)


def test_a_job_is_submitted_and_its_number_printed(tmp_path: Path) -> None:
    """With an sbatch that tells what it was given."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "$PYTHON $*"\necho "Submitted batch job 77"\n')
    sbatch.chmod(0o755)
    command = [sys.executable, "-m", "clipx", "launch", "slurm", str(CONFIG)]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*command, "--nodes=2", "--gpus-per-node=4"], env=environment, capture_output=True, text=True, check=False
    )
    file = LAUNCH_FILES / "slurm" / "train.sbatch"
    expected = f"{sys.executable} --nodes=2 --gpus-per-node=4 {file} {CONFIG}\nSubmitted batch job 77\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_accelerate_is_supervised(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its variables, and over the config's run folder; the exit code is the run's."""
    called: dict[str, Any] = {}

    def supervise(command: tuple[str, ...], run_dir: Path, *, environment: dict[str, str]) -> int:
        called.update(command=command, run_dir=run_dir, environment=environment)
        return 85

    monkeypatch.setattr("clipx.launching.supervise.supervise", supervise)
    monkeypatch.setenv("KEPT", "1")
    assert launch("accelerate", "--gpus-per-node", "2", "run_dir=runs/mine").exit_code == 85
    assert called["command"][:3] == (sys.executable, "-m", "accelerate.commands.launch")
    assert called["run_dir"] == Path("runs/mine")
    assert (called["environment"]["CLIPX_EXIT_CODE_AGAIN"], called["environment"]["KEPT"]) == ("0", "1")


def test_the_files_are_copied(tmp_path: Path) -> None:
    done = CliRunner().invoke(launch_app, ["files", str(tmp_path / "launch")])
    assert done.exit_code == 0
    assert (tmp_path / "launch" / "kubernetes" / "jobset.yaml").is_file()
