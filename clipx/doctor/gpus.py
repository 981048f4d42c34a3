"""The GPUs: whether torch can use them, whether they are free and support the precision, how fast they multiply."""

import os
from pathlib import Path
from statistics import median

import torch

from clipx.distributed.hardware import peak_flops
from clipx.doctor.finding import GIB, Finding, Measurement, num_bytes, ok, problem, warning

# H100s and A100s reach 0.65 to 0.85 of their dense peak on products this large; half of it is a fault.
_SLOW_SHARE, _BROKEN_SHARE = 0.5, 0.2
_MATRIX, _PRODUCTS = 8192, 20  # 1.1 TFLOP each
# A CUDA context of this process takes 0.3 to 0.8 GiB; more than this belongs to another process.
_FOREIGN_MEMORY = 2 * GIB
_DRIVER = Path("/proc/driver/nvidia/version")  # of the kernel module
_CAPABILITIES = {"bf16": (8, 0), "fp8": (8, 9)}  # Ampere; Ada and Hopper


def check_available(*, ranks_here: int) -> Finding:
    """Whether torch can use the GPUs of this machine, and whether there is one for each rank."""
    visible, cuda = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.version.cuda
    if torch.cuda.is_available():
        num_gpus = torch.cuda.device_count()
        value = f"{num_gpus} visible, torch for CUDA {cuda}"
        if ranks_here > num_gpus and visible is None:  # otherwise a scheduler gave each rank its own
            hint = f"start one rank per GPU: --nproc-per-node {num_gpus}"
            return problem("available", f"{value}, and {ranks_here} ranks on this machine", hint)
        return ok("available", value)
    if not _DRIVER.exists():
        hint = "enough for tests and the demo, not for pretraining"
        return warning("available", "none; a run trains on the CPU", hint)
    if visible is not None and visible.strip() in ("", "-1"):
        return warning("available", f"hidden by CUDA_VISIBLE_DEVICES={visible!r}", "unset it to train on them")
    hint = "nvidia-smi must list the GPUs; update the driver, or install a torch for its CUDA (pytorch.org says how)"
    return problem("available", f"torch for CUDA {cuda} cannot use them: {_why_unavailable()}", hint)


def check_gpu(device: torch.device) -> list[Finding]:
    """All lines about one GPU; call it before this process takes memory of it."""
    free, total = torch.cuda.mem_get_info(device)
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    findings = [check_kind(name, capability), check_free_memory(free, total)]
    try:
        return [*findings, check_products(measure_products(device), peak_flops(device))]
    except RuntimeError as error:  # no kernels for this GPU, no memory left, or broken
        reason = str(error).partition("\n")[0]
        hint = "install a torch built for this GPU (pytorch.org); if it is, take the GPU out of the job and reset it"
        return [*findings, problem("matrix products", f"fail: {reason}", hint)]


def check_kind(name: str, capability: tuple[int, int]) -> Finding:
    """Which GPU it is, and whether its compute capability, (major, minor), supports bf16."""
    value = f"{name}, compute capability {capability[0]}.{capability[1]}"
    supported = [precision for precision, needed in _CAPABILITIES.items() if capability >= needed]
    if not supported:
        return warning("GPU", f"{value}, no bf16", "set precision=fp16")
    return ok("GPU", f"{value}, {' and '.join(supported)}")


def check_free_memory(free: int, total: int) -> Finding:
    """Whether another process holds memory of the GPU; both numbers are bytes."""
    value, measurement = f"{num_bytes(free)} free of {num_bytes(total)}", Measurement(free)
    if total - free <= _FOREIGN_MEMORY:
        return ok("GPU memory", value, measurement)
    hint = "end what runs there (nvidia-smi lists it), or choose another GPU"
    return warning("GPU memory", value, hint, measurement)


def measure_products(device: torch.device) -> float:
    """FLOP/s of 8192 x 8192 products of random bf16 matrices (zeros draw less power and look faster)."""
    left, right = (torch.randn(_MATRIX, _MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    times_ms = []
    for _ in range(_PRODUCTS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(device):
            begin.record()
            left @ right
            end.record()
        end.synchronize()
        times_ms.append(begin.elapsed_time(end))
    return 2 * _MATRIX**3 / (median(times_ms[_PRODUCTS // 4 :]) / 1e3)  # the first ones warm up


def check_products(flops: float, peak: float | None) -> Finding:
    """Whether large bf16 matrix products are near the published peak, if clipx knows it; both are FLOP/s."""
    measurement, value = Measurement(flops, comparable=True), f"{flops / 1e12:,.0f} TFLOP/s in bf16"
    if peak is None:
        return ok("matrix products", f"{value}; this GPU's peak is not known to clipx", measurement)
    value = f"{value}, {flops / peak:.0%} of the published {peak / 1e12:,.0f}"
    hint = "shared with another job, hot, limited in power or broken: nvidia-smi -q -d PERFORMANCE,POWER says why"
    if flops < _BROKEN_SHARE * peak:
        return problem("matrix products", value, hint, measurement)
    if flops < _SLOW_SHARE * peak:
        return warning("matrix products", value, hint, measurement)
    return ok("matrix products", value, measurement)


def _why_unavailable() -> str:
    """Why torch cannot use a GPU, in its own words."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).partition(". ")[0]
    return "it gives no reason"
