"""Peak speeds by the names that devices give themselves."""

import pytest
import torch

from clipx.distributed.hardware import find_gpu, peak_flops
from clipx.errors import InputError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-80GB", 311.9e12),
        ("NVIDIA A100 80GB PCIe", 311.9e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Some other card", None),
    ],
)
def test_peak_is_that_of_the_name(name: str, expected: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda")) == expected


def test_a_cpu_has_none() -> None:
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "found", "gigabytes"),
    [
        ("h100", "H100", 80),
        ("H100-80GB", "H100", 80),
        ("NVIDIA H100 PCIe", "H100 PCIe", 80),
        ("a100", "A100", 80),
        ("A100-40GB", "A100 40GB", 40),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB", 40),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB", 40),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe", 80),
        ("H200", "H200", 141),
        ("rtx 4090", "RTX 4090", 24),
    ],
)
def test_a_gpu_is_found_as_people_name_it(name: str, found: str, gigabytes: int) -> None:
    gpu = find_gpu(name)
    assert (gpu.name, gpu.memory_bytes) == (found, gigabytes * 2**30)


@pytest.mark.parametrize(("name", "nearest"), [("H10O", "H100"), ("RTX 409", "RTX 4090"), ("?", "B200, H100 PCIe")])
def test_an_unknown_gpu_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"not known; nearest: .*{nearest}"):
        find_gpu(name)
