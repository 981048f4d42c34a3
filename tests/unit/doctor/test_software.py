"""Versions, environment variables, launchers and the tracker's server."""

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError

import pytest
from servers import WebServer

from clipx.doctor import software
from clipx.doctor.finding import Finding, Verdict
from clipx.doctor.software import (
    Package,
    check_launcher,
    check_namesake,
    check_packages,
    check_variables,
    check_wandb,
    needed_packages,
)

PYTHON = Package("Python", ">=3.11", "3.11.0")


def test_packages_that_fit_are_one_line() -> None:
    [finding] = check_packages([PYTHON, Package("torch", ">=2.11", "2.11.0+cu130"), Package("yaml", "", "1")])
    assert finding.verdict is Verdict.OK
    assert finding.value == "Python 3.11.0, torch 2.11.0+cu130, 3 requirements met"


def test_each_package_that_does_not_fit_is_a_line_with_its_hint() -> None:
    found = check_packages([PYTHON, Package("torch", ">=2.11", "2.10.1"), Package("timm", ">=1", None)])
    assert [finding.value for finding in found] == ["2.10.1, >=2.11 needed", "not installed, >=1 needed"]
    assert [(finding.name, finding.verdict, finding.hint) for finding in found] == [
        ("torch", Verdict.PROBLEM, "pip install 'torch>=2.11'"),
        ("timm", Verdict.PROBLEM, "pip install 'timm>=1'"),
    ]
    assert check_packages([Package("Python", ">=3.11", "3.10.9")])[0].hint == "use a newer Python"


def test_what_is_needed_comes_from_the_package_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {package.name: package for package in needed_packages()}
    assert needed["torch"].needed == ">=2.11"
    assert needed["Python"].installed == ".".join(map(str, sys.version_info[:3]))
    assert "pytest" not in needed  # an extra
    assert check_packages(needed_packages())[0].verdict is Verdict.OK

    def absent(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(software, "requires", absent)
    assert check_packages(needed_packages())[0].verdict is Verdict.WARNING


def test_another_program_of_our_name_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(**versions: str) -> list[Finding]:
        monkeypatch.setattr(software, "_installed", versions.get)
        return check_namesake()

    assert installed(torch="2.11") == []
    [finding] = installed(clipx="0.5.0")
    assert (finding.name, finding.verdict) == ("namesake", Verdict.WARNING)
    assert finding.value.startswith("the package clipx 0.5.0 is installed beside clipx-train")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, {"environment": Verdict.OK}),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, {"CUDA_LAUNCH_BLOCKING": Verdict.WARNING}),
        ({"CUDA_LAUNCH_BLOCKING": "0"}, {"environment": Verdict.OK}),
        ({"NCCL_DEBUG": "info"}, {"NCCL_DEBUG": Verdict.WARNING}),
        ({"NCCL_DEBUG": "WARN"}, {"environment": Verdict.OK}),
    ],
)
def test_variables_that_hurt(env: dict[str, str], expected: dict[str, Verdict]) -> None:
    found = check_variables(env, ranks_here=1, cores=8)
    assert {finding.name: finding.verdict for finding in found} == expected


@pytest.mark.parametrize(
    ("threads", "ranks_here", "hint"),
    [
        (None, 1, ""),
        (None, 2, "export OMP_NUM_THREADS=4"),
        ("4", 2, ""),
        ("5", 2, "export OMP_NUM_THREADS=4"),
        ("1", 9, ""),  # fewer there cannot be; the line about cores says it
    ],
)
def test_threads_of_all_ranks_fit_the_cores(threads: str | None, ranks_here: int, hint: str) -> None:
    env = {} if threads is None else {"OMP_NUM_THREADS": threads}
    [finding] = check_variables(env, ranks_here=ranks_here, cores=8)
    assert finding.hint == hint


SLURM = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "3"}
RANK = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0"}
STEP = SLURM | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, "none, one process"),
        (RANK, "RANK and WORLD_SIZE: 4 ranks, ? on this machine"),
        (
            RANK | {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "SLURM_JOB_ID": "12"},
            "torchrun: 4 ranks, 2 on this machine",
        ),
        (STEP, "Slurm job 12: 2 nodes, 8 tasks; ranks from SLURM_PROCID"),
        (SLURM | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, "Slurm job 12: one process"),
    ],
)
def test_the_launcher_is_named(env: dict[str, str], found: str) -> None:
    finding = check_launcher(env)
    assert (finding.value, finding.verdict) == (found, Verdict.OK)


def test_a_batch_script_without_srun_is_a_problem() -> None:
    finding = check_launcher(SLURM)
    assert finding.verdict is Verdict.PROBLEM
    assert "put srun before the command" in finding.hint
    assert check_launcher(SLURM | {"SLURM_NTASKS": "1"}).verdict is Verdict.OK


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with WebServer() as server:
        yield server


def test_wandb_is_asked_only_when_online(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert check_wandb("offline").verdict is Verdict.OK
    assert check_wandb("disabled").value == "disabled: not used"
    finding = check_wandb("online")
    assert (finding.verdict, "Connection refused" in finding.value) == (Verdict.PROBLEM, True)
    assert "track.wandb=offline" in finding.hint
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    assert check_wandb("online").value == f"online: {server.url} answers"  # "not found" is an answer


def test_a_proxy_is_asked_instead(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
    assert check_wandb("online").verdict is Verdict.PROBLEM
    monkeypatch.setenv("http_proxy", server.url)
    assert check_wandb("online").verdict is Verdict.OK
