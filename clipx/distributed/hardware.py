"""Published peak speeds of GPUs, the denominator of MFU."""

import re

import torch

# Dense bf16 tensor FLOP/s, from NVIDIA's data sheets; the first name counts whose words the device's own holds.
_PEAK_FLOPS = {
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "GH200": 989.4e12,
    "H20": 148e12,
    "A100": 311.9e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 FLOP/s; None where they are not known, on a CPU for instance."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for words, flops in _PEAK_FLOPS.items() if re.search(rf"\b{words}\b", name)), None)
