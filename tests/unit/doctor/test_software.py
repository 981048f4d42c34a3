"""Versions, environment variables and launchers, judged on made-up values."""

import sys
from importlib.metadata import PackageNotFoundError

import pytest

from clipx.doctor import software
from clipx.doctor.findings import Verdict
from clipx.doctor.software import Package, judge_environment, judge_launch, judge_packages, needed_packages

PYTHON = Package("Python", ">=3.11", "3.11.0")


def test_packages_that_fit_are_one_line() -> None:
    [finding] = judge_packages([PYTHON, Package("torch", ">=2.11", "2.11.0+cu130"), Package("yaml", "", "1")])
    assert finding.verdict is Verdict.OK
    assert finding.found == "Python 3.11.0, torch 2.11.0+cu130, 3 requirements met"


def test_each_package_that_does_not_fit_is_a_line_with_its_mend() -> None:
    found = judge_packages([PYTHON, Package("torch", ">=2.11", "2.10.1"), Package("timm", ">=1", None)])
    assert [finding.found for finding in found] == ["2.10.1, >=2.11 needed", "not installed, >=1 needed"]
    assert [(finding.name, finding.verdict, finding.advice) for finding in found] == [
        ("torch", Verdict.PROBLEM, "pip install 'torch>=2.11'"),
        ("timm", Verdict.PROBLEM, "pip install 'timm>=1'"),
    ]
    assert judge_packages([Package("Python", ">=3.11", "3.10.9")])[0].advice == "use a newer Python"


def test_what_is_needed_comes_from_the_package_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {package.name: package for package in needed_packages()}
    assert needed["torch"].needed == ">=2.11"
    assert needed["Python"].found == ".".join(map(str, sys.version_info[:3]))
    assert "pytest" not in needed  # an extra
    assert judge_packages(needed_packages())[0].verdict is Verdict.OK

    def absent(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(software, "requires", absent)
    assert judge_packages(needed_packages())[0].verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, {"environment": Verdict.OK}),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, {"CUDA_LAUNCH_BLOCKING": Verdict.WARNING}),
        ({"CUDA_LAUNCH_BLOCKING": "0"}, {"environment": Verdict.OK}),
        ({"NCCL_DEBUG": "info"}, {"NCCL_DEBUG": Verdict.WARNING}),
        ({"NCCL_DEBUG": "WARN"}, {"environment": Verdict.OK}),
        ({"NCCL_SOCKET_IFNAME": "eth"}, {"environment": Verdict.OK}),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, {"NCCL_SOCKET_IFNAME": Verdict.PROBLEM}),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, {"environment": Verdict.OK}),
        ({"GLOO_SOCKET_IFNAME": "eth"}, {"GLOO_SOCKET_IFNAME": Verdict.PROBLEM}),
        ({"GLOO_SOCKET_IFNAME": "eth0"}, {"environment": Verdict.OK}),
        ({"WORLD_SIZE": "8"}, {"WORLD_SIZE": Verdict.PROBLEM}),
        (
            {"WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            {"environment": Verdict.OK},
        ),
    ],
)
def test_variables_that_hurt(env: dict[str, str], expected: dict[str, Verdict]) -> None:
    found = judge_environment(env, interfaces=["lo", "eth0"], ranks_here=1, cores=8)
    assert {finding.name: finding.verdict for finding in found} == expected


@pytest.mark.parametrize(
    ("threads", "ranks_here", "advice"),
    [
        (None, 1, ""),
        (None, 2, "export OMP_NUM_THREADS=4"),
        ("4", 2, ""),
        ("5", 2, "export OMP_NUM_THREADS=4"),
        ("1", 9, ""),  # fewer there cannot be; the line about cores says it
    ],
)
def test_threads_of_all_ranks_fit_the_cores(threads: str | None, ranks_here: int, advice: str) -> None:
    env = {} if threads is None else {"OMP_NUM_THREADS": threads}
    [finding] = judge_environment(env, interfaces=[], ranks_here=ranks_here, cores=8)
    assert finding.advice == advice


SLURM = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, "none, one process"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "none, one process, in Kubernetes"),
        ({"RANK": "1", "WORLD_SIZE": "4"}, "RANK and WORLD_SIZE: 4 ranks, ? on this machine"),
        (
            {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "SLURM_JOB_ID": "12"},
            "torchrun: 4 ranks, 2 on this machine, in Slurm job 12",
        ),
        (
            SLURM | {"SLURM_STEP_ID": "0", "SLURM_JOB_END_TIME": "1600"},
            "Slurm job 12: 2 nodes, 8 tasks; ranks from SLURM_PROCID; 10 minutes left",
        ),
    ],
)
def test_the_launcher_is_named(env: dict[str, str], found: str) -> None:
    finding = judge_launch(env, now=1000)
    assert (finding.found, finding.verdict) == (found, Verdict.OK)


def test_a_batch_script_without_srun_is_a_problem() -> None:
    finding = judge_launch(SLURM, now=0)
    assert finding.verdict is Verdict.PROBLEM
    assert "put srun before the command" in finding.advice
    assert judge_launch(SLURM | {"SLURM_NTASKS": "1"}, now=0).verdict is Verdict.OK
