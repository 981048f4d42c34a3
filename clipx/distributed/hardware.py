"""Published peak speeds of GPUs, the denominator of MFU."""

import torch

# Dense bf16 tensor FLOP/s, from NVIDIA's data sheets; the first name that the device's own contains counts.
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
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)
