"""Speeds, memory and links of GPUs, from their makers' data sheets: the denominator of MFU, and input of plans.

Data sheets add up both directions of a link and count memory in 2^30 bytes. Here the speed of a link is that of one
direction, and memory is what a program can use: cards with GDDR6 have error correction on, which takes 1/16 of it.
"""

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipx.errors import InputError

if TYPE_CHECKING:
    import torch

_GIB, _T = 2**30, 1e12
_NVLINK3, _NVLINK4, _NVLINK5 = 300e9, 450e9, 900e9  # bytes/s one way, half of 600, 900 and 1,800 GB/s
_PCIE4, _PCIE5 = 32e9, 64e9  # 16 lanes, one way
_HDR, _NDR = 25e9, 50e9  # an InfiniBand adapter of 200 or 400 Gbit/s for every GPU: DGX A100; DGX H100 to GB200
_MAX_NAMES = 10  # in a message
_SHARED_NETWORK = 12.5e9 / 8  # no data sheet: 100 Gbit/s for a machine of eight


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """Matches a device if all its words, in any order, are in the name that the device reports."""
    bf16_flops: float
    """Dense bf16 (and fp16) tensor FLOP/s."""
    fp32_flops: float
    """float32 FLOP/s outside tensor cores: clipx multiplies float32 as float32, never as TF32."""
    memory_bytes: int
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Speed to the other GPUs of the machine, one way."""
    network_bytes_per_s: float
    """This GPU's share of the machine's network, one way, in the maker's own machines; others differ."""


# NVIDIA's data sheets. If several names match a device, the first one is taken.
_GPUS = (
    Gpu("GB200", 2500 * _T, 80 * _T, 186 * _GIB, 8.0e12, _NVLINK5, _NDR),
    Gpu("B200", 2250 * _T, 75 * _T, 180 * _GIB, 8.0e12, _NVLINK5, _NDR),
    Gpu("H100 PCIe", 756 * _T, 51 * _T, 80 * _GIB, 2.0e12, _PCIE5, _SHARED_NETWORK),
    Gpu("H100 NVL", 835 * _T, 60 * _T, 94 * _GIB, 3.9e12, _PCIE5, _SHARED_NETWORK),
    Gpu("H100", 989.4 * _T, 67 * _T, 80 * _GIB, 3.35e12, _NVLINK4, _NDR),
    Gpu("H200", 989.4 * _T, 67 * _T, 141 * _GIB, 4.8e12, _NVLINK4, _NDR),
    Gpu("GH200", 989.4 * _T, 67 * _T, 96 * _GIB, 4.0e12, _NVLINK4, _NDR),
    Gpu("H20", 148 * _T, 44 * _T, 96 * _GIB, 4.0e12, _NVLINK4, _NDR),
    Gpu("A100 PCIe 40GB", 311.9 * _T, 19.5 * _T, 40 * _GIB, 1.555e12, _PCIE4, _SHARED_NETWORK),
    Gpu("A100 PCIe", 311.9 * _T, 19.5 * _T, 80 * _GIB, 1.935e12, _PCIE4, _SHARED_NETWORK),
    Gpu("A100 40GB", 311.9 * _T, 19.5 * _T, 40 * _GIB, 1.555e12, _NVLINK3, _HDR),
    Gpu("A100", 311.9 * _T, 19.5 * _T, 80 * _GIB, 2.039e12, _NVLINK3, _HDR),
    Gpu("A40", 149.7 * _T, 37.4 * _T, 45 * _GIB, 696e9, _PCIE4, _SHARED_NETWORK),
    Gpu("A10", 125 * _T, 31.2 * _T, 45 * _GIB // 2, 600e9, _PCIE4, _SHARED_NETWORK),
    Gpu("A10G", 70 * _T, 35 * _T, 45 * _GIB // 2, 600e9, _PCIE4, _SHARED_NETWORK),
    Gpu("L40S", 362 * _T, 91.6 * _T, 45 * _GIB, 864e9, _PCIE4, _SHARED_NETWORK),
    Gpu("L40", 181 * _T, 90.5 * _T, 45 * _GIB, 864e9, _PCIE4, _SHARED_NETWORK),
    Gpu("L4", 121 * _T, 30.3 * _T, 45 * _GIB // 2, 300e9, _PCIE4, _SHARED_NETWORK),
    Gpu("RTX 4090", 165.2 * _T, 82.6 * _T, 24 * _GIB, 1008e9, _PCIE4, _SHARED_NETWORK),
)


def find_gpu(name: str) -> Gpu:
    """The kind of GPU with a given name: `H100`, `a100-40gb`, or the name that nvidia-smi prints.

    Raises:
        InputError: the name is not known; the message has the nearest names.
    """
    gpu = _known(name)
    if gpu is None:
        known = {other.name.lower(): other.name for other in _GPUS}
        nearest = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)]
        raise InputError(
            f"--gpu {name} is not known; nearest: {', '.join(nearest or list(known.values())[:_MAX_NAMES])}"
        )
    return gpu


def peak_flops(device: "torch.device") -> float | None:
    """The device's dense bf16 FLOP/s; None if they are not known, on a CPU for instance."""
    if device.type != "cuda":
        return None
    import torch  # plans need the table alone

    gpu = _known(torch.cuda.get_device_name(device))
    return None if gpu is None else gpu.bf16_flops


def _known(name: str) -> Gpu | None:
    words = _words(name)
    return next((gpu for gpu in _GPUS if _words(gpu.name) <= words), None)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))
