"""GPUs, on made-up values: every line can be tested on a machine without one."""

from pathlib import Path

import pytest
import torch

from clipx.doctor import gpus, run_checks
from clipx.doctor.finding import GIB, Finding, Verdict
from clipx.doctor.gpus import check_available, check_free_memory, check_kind, check_products
from clipx.doctor.process_groups import ProcessGroups

OK, WARNING, PROBLEM = Verdict
H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("num_gpus", "ranks_here", "visible", "has_driver", "verdict", "value"),
    [
        (8, 8, None, True, OK, "8 visible, torch for CUDA 13.0"),
        (8, 1, None, True, OK, "8 visible"),
        (7, 8, None, True, PROBLEM, "8 ranks on this machine"),
        (1, 8, "0", True, OK, "1 visible"),
        (0, 1, None, True, PROBLEM, "cannot use them: The driver is too old"),
        (0, 1, "", True, WARNING, "CUDA_VISIBLE_DEVICES=''"),
        (0, 1, None, False, WARNING, "none"),
    ],
)
def test_torch_against_the_driver(
    num_gpus: int,
    ranks_here: int,
    visible: str | None,
    has_driver: bool,
    verdict: Verdict,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def init() -> None:
        raise RuntimeError("The driver is too old. Please update it")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path if has_driver else tmp_path / "none")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    finding = check_available(ranks_here=ranks_here)
    assert finding.verdict is verdict
    assert value in finding.value
    assert bool(finding.hint) is (verdict is not OK)


@pytest.mark.parametrize(
    ("capability", "verdict", "value"),
    [
        ((9, 0), OK, "9.0, bf16 and fp8"),
        ((8, 9), OK, "8.9, bf16 and fp8"),
        ((8, 8), OK, "8.8, bf16"),
        ((8, 0), OK, "8.0, bf16"),
        ((7, 5), WARNING, "7.5, no bf16"),
    ],
)
def test_the_precisions_of_a_gpu_are_named(capability: tuple[int, int], verdict: Verdict, value: str) -> None:
    finding = check_kind(H100, capability)
    assert (finding.verdict, finding.value) == (verdict, f"{H100}, compute capability {value}")


def test_memory_that_another_process_holds() -> None:
    assert check_free_memory(78 * GIB, 80 * GIB).verdict is OK
    finding = check_free_memory(78 * GIB - 1, 80 * GIB)
    assert finding.verdict is WARNING
    assert "nvidia-smi" in finding.hint


@pytest.mark.parametrize(("share", "verdict"), [(0.7, OK), (0.5, OK), (0.49, WARNING), (0.2, WARNING), (0.19, PROBLEM)])
def test_speed_of_products(share: float, verdict: Verdict) -> None:
    assert check_products(share * 1e15, 1e15).verdict is verdict
    assert check_products(share * 1e15, None).verdict is OK


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two H100s, as far as torch is asked about them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((79 - device.index) * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: H100)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(gpus, "peak_flops", lambda device: 989.4e12)


def _lines() -> dict[str, Finding]:
    return {finding.name: finding for finding in run_checks._check_gpus(ProcessGroups())}


@pytest.mark.usefixtures("two_gpus")
def test_all_gpus_of_a_machine_are_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "measure_products", lambda device: (700e12, 500e12)[device.index])
    lines = _lines()
    assert lines["GPU"].value == f"{H100}, compute capability 9.0, bf16 and fp8"
    assert lines["GPU memory"].value == "78 GiB free of 80 GiB (GPU 1; the lowest of 2)"
    assert lines["matrix products"].verdict is WARNING
    assert "(GPU 1: 71% of what is usual here)" in lines["matrix products"].value


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_cannot_compute_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(device: torch.device) -> float:
        if device.index == 1:
            raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")
        return 700e12

    monkeypatch.setattr(gpus, "measure_products", measure)
    finding = _lines()["matrix products"]
    assert finding.verdict is PROBLEM
    assert finding.value == "GPU 1: fail: CUDA error: no kernel image is available"
    assert "pytorch.org" in finding.hint


@pytest.mark.gpu
def test_a_real_gpu_is_checked() -> None:
    findings = gpus.check_gpu(torch.device("cuda", 0))
    assert [finding.name for finding in findings] == ["GPU", "GPU memory", "matrix products"]
    assert findings[2].measurement is not None
    assert findings[2].measurement.value > 1e12
