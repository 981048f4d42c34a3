"""GPUs, judged on made-up values: every line can be tested where there is none."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from clipx.doctor import examine, gpus
from clipx.doctor.findings import GIB, Verdict
from clipx.doctor.gpus import (
    Build,
    FromDriver,
    Gpu,
    Precision,
    ask_driver,
    has_kernels,
    judge_build,
    judge_gpu,
    judge_occupation,
    judge_products,
    own_build,
    parse_driver,
)
from clipx.doctor.meeting import Meeting

OK, WARNING, PROBLEM = Verdict
GOOD = Build(cuda="13.0", available=True, reason="", has_driver=True, nccl="2.30.7", visible=None)
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB, 79 * GIB, "1-2", 989.4e12)


@pytest.mark.parametrize(
    ("build", "num_gpus", "ranks_here", "verdict", "said"),
    [
        (GOOD, 8, 8, OK, "NCCL 2.30.7"),
        (GOOD, 8, 1, OK, "8 visible"),
        (GOOD, 7, 8, PROBLEM, "8 ranks on this machine"),
        (GOOD._replace(visible="0"), 1, 8, OK, "1 visible"),
        (GOOD._replace(nccl=None), 8, 8, PROBLEM, "NCCL missing"),
        (GOOD._replace(available=False, cuda=None), 0, 1, PROBLEM, "built without CUDA"),
        (GOOD._replace(available=False, reason="driver too old"), 0, 1, PROBLEM, "driver too old"),
        (GOOD._replace(available=False, visible=""), 0, 1, WARNING, "CUDA_VISIBLE_DEVICES=''"),
        (GOOD._replace(available=False, has_driver=False), 0, 1, WARNING, "none"),
    ],
)
def test_torch_against_the_driver(build: Build, num_gpus: int, ranks_here: int, verdict: Verdict, said: str) -> None:
    finding = judge_build(build, num_gpus=num_gpus, ranks_here=ranks_here)
    assert finding.verdict is verdict
    assert said in finding.found


@pytest.mark.parametrize(
    ("cuda", "available", "reason", "nccl"),
    [("13.0", False, "Found no driver", "2.30"), ("13.0", True, "", "2.30"), (None, False, "", None)],
)
def test_torch_says_why_it_finds_no_gpu(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, available: bool, reason: str, nccl: str | None
) -> None:
    def init() -> None:
        raise RuntimeError("Found no driver. Please install one")

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 30))
    monkeypatch.setattr(gpus.dist, "is_nccl_available", lambda: True)
    build = own_build()
    assert (build.cuda, build.available, build.reason, build.nccl) == (cuda, available, reason, nccl)


@pytest.mark.parametrize(
    ("capability", "precision", "verdict", "advice"),
    [
        ((9, 0), None, OK, ""),
        ((9, 0), "fp8", OK, ""),
        ((8, 9), "fp8", OK, ""),
        ((8, 6), "fp8", PROBLEM, "set precision=bf16"),
        ((8, 0), "fp8", PROBLEM, "set precision=bf16"),
        ((8, 0), "bf16", OK, ""),
        ((7, 5), "bf16", PROBLEM, "set precision=fp16"),
        ((7, 5), None, WARNING, "set precision=fp16"),
        ((7, 5), "fp32", OK, ""),
    ],
)
def test_precision(capability: tuple[int, int], precision: Precision | None, verdict: Verdict, advice: str) -> None:
    builds = ["sm_75", "sm_80", "sm_90"]
    finding = judge_gpu(replace(H100, capability=capability), None, precision=precision, builds=builds)
    assert (finding.verdict, finding.advice) == (verdict, advice)


@pytest.mark.parametrize(
    ("capability", "said"),
    [((8, 9), "bf16 and fp8"), ((8, 8), ", bf16"), ((8, 0), ", bf16"), ((7, 5), "no bf16")],
)
def test_the_arithmetic_of_a_gpu_is_named(capability: tuple[int, int], said: str) -> None:
    finding = judge_gpu(replace(H100, capability=capability), None, precision="fp32", builds=["compute_50"])
    assert finding.found.endswith(said)


@pytest.mark.parametrize(
    ("capability", "builds", "runs"),
    [
        ((9, 0), ["sm_90"], True),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["compute_80"], True),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_90a", "sm_120"], True),
        ((10, 0), ["sm_90a"], False),
        ((9, 0), [], False),
    ],
)
def test_kernels(capability: tuple[int, int], builds: list[str], runs: bool) -> None:
    assert has_kernels(capability, builds) is runs
    finding = judge_gpu(replace(H100, capability=capability), None, precision="fp32", builds=builds)
    assert finding.verdict is (OK if runs else PROBLEM)


def test_memory_errors_are_a_problem() -> None:
    for errors, verdict in ((0, OK), (None, OK), (1, PROBLEM)):
        finding = judge_gpu(H100, FromDriver("580.1", errors, ()), precision=None, builds=["sm_90"])
        assert finding.verdict is verdict
        assert "driver 580.1" in finding.found


def test_memory_that_somebody_else_holds() -> None:
    assert judge_occupation(replace(H100, free=78 * GIB), ()).verdict is OK
    finding = judge_occupation(replace(H100, free=78 * GIB - 1), ("python (process 7, 2100 MiB)",))
    assert finding.verdict is WARNING
    assert "taken by python (process 7" in finding.found


@pytest.mark.parametrize(("share", "verdict"), [(0.7, OK), (0.5, OK), (0.49, WARNING), (0.2, WARNING), (0.19, PROBLEM)])
def test_speed_of_products(share: float, verdict: Verdict) -> None:
    assert judge_products(share * 1e15, 1e15).verdict is verdict
    assert judge_products(share * 1e15, None).verdict is OK


def test_the_driver_is_read() -> None:
    own = os.getpid()
    found = parse_driver(
        "GPU-1-2, 580.65.06, 0\nGPU-3-4, 580.65.06, [N/A]\n",
        f"GPU-1-2, 7, /usr/bin/python, 2100\nGPU-1-2, {own}, python, 500\nGPU-9, 8, x, 1\n",
    )
    assert found == {
        "1-2": FromDriver("580.65.06", 0, ("/usr/bin/python (process 7, 2100 MiB)",)),
        "3-4": FromDriver("580.65.06", None, ()),
    }
    assert parse_driver("Field is not a valid field to query.\n", "") == {}


def test_a_driver_that_does_not_answer_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.shutil, "which", lambda name: None)
    assert ask_driver() == {}
    monkeypatch.setattr(gpus.shutil, "which", lambda name: "/bin/false")
    assert ask_driver() == {}


def test_all_gpus_of_a_machine_are_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it goes without one: what reads a GPU is replaced."""
    speeds = {0: 700e12, 1: 500e12}
    monkeypatch.setattr(gpus, "own_gpu", lambda device: replace(H100, uuid=str(device.index)))
    monkeypatch.setattr(gpus, "measure_products", lambda device: speeds[device.index])
    monkeypatch.setattr(gpus, "ask_driver", lambda: {"1": FromDriver("580.1", 3, ())})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=device.index))
    found = {finding.name: finding for finding in examine._look_at_gpus(None, Meeting())}
    assert (found["GPU"].verdict, found["GPU memory"].verdict) == (PROBLEM, OK)
    assert found["GPU"].found.startswith("GPU 1: NVIDIA H100 80GB HBM3, 80 GiB")
    assert found["matrix products"].verdict is WARNING
    assert "(GPU 1: 71% of what is usual here)" in found["matrix products"].found


@pytest.mark.gpu
def test_a_gpu_is_looked_at() -> None:
    found = gpus.look_at_gpu(torch.device("cuda", 0), None, precision=None)
    assert [finding.name for finding in found] == ["GPU", "GPU memory", "matrix products"]
    assert found[2].figure is not None
    assert found[2].figure.value > 1e12
