"""The GPUs: the driver against torch's build, memory, precision, who else computes there, how fast they multiply."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

from clipx.distributed.hardware import peak_flops
from clipx.doctor.findings import GIB, Figure, Finding, num_bytes, ok, problem, warning

Precision = Literal["fp32", "bf16", "fp16", "fp8"]

# H100s and A100s reach 0.65 to 0.85 of their dense peak on products this large; half is a fault, and no bad luck.
_SLOW_SHARE, _BROKEN_SHARE = 0.5, 0.2
_MATRIX, _PRODUCTS = 8192, 20  # 1.1 TFLOP each
# A CUDA context of this process takes 0.3 to 0.8 GiB; what is above is somebody's.
_FOREIGN_MEMORY = 2 * GIB
_CAPABILITIES: dict[Precision, tuple[int, int]] = {"bf16": (8, 0), "fp8": (8, 9)}  # Ampere; Ada and Hopper
_QUERY_S = 10
_FIELDS = "uuid,driver_version,ecc.errors.uncorrected.volatile.total"


class Build(NamedTuple):
    """How torch and this machine fit together."""

    cuda: str | None
    """CUDA of torch's build; None: built without."""
    available: bool
    """Whether torch can use a GPU."""
    reason: str
    """Why it cannot; torch's own words."""
    has_driver: bool
    """Whether NVIDIA's kernel module is loaded here."""
    nccl: str | None
    """Version; None where torch has none."""
    visible: str | None
    """CUDA_VISIBLE_DEVICES."""


class FromDriver(NamedTuple):
    """What nvidia-smi says of a GPU."""

    driver: str
    uncorrected_errors: int | None
    """ECC errors since the last reboot; None where it has no ECC."""
    processes: tuple[str, ...]
    """Those that compute there, in words; a container sees only its own."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as this process finds it, before it uses any of its memory."""

    name: str
    capability: tuple[int, int]
    memory: int
    """Bytes in all."""
    free: int
    """Bytes not taken by anybody."""
    uuid: str
    peak: float | None
    """Published dense bf16 FLOP/s, where they are known."""


def own_build() -> Build:
    """Of this process."""
    available, reason = torch.cuda.is_available(), ""
    if torch.version.cuda is not None and not available:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition(". ")[0]
    nccl = dist.is_nccl_available() and torch.version.cuda is not None
    return Build(
        cuda=torch.version.cuda,
        available=available,
        reason=reason,
        has_driver=Path("/proc/driver/nvidia/version").exists(),
        nccl=".".join(map(str, torch.cuda.nccl.version())) if nccl else None,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def judge_build(build: Build, *, num_gpus: int, ranks_here: int) -> Finding:
    """Whether torch reaches the GPUs that are there, and whether the ranks use them all.

    Args:
        build: torch and driver.
        num_gpus: that torch sees.
        ranks_here: ranks on this machine; one may be a look at a machine before a job.
    """
    if build.available:
        found = f"{num_gpus} visible, torch for CUDA {build.cuda}, NCCL {build.nccl or 'missing'}"
        if ranks_here > num_gpus and build.visible is None:  # else a scheduler gave each rank its own
            advice = f"start one rank per GPU: --nproc-per-node {num_gpus}"
            return problem("available", f"{found}, and {ranks_here} ranks on this machine", advice)
        if build.nccl is None:
            return problem("available", found, "ranks cannot talk: install torch's own CUDA build for Linux")
        return ok("available", found)
    if build.has_driver and build.cuda is None:
        advice = "install torch's CUDA build: the selector on pytorch.org gives the command"
        return problem("available", "the driver is loaded, but torch is built without CUDA", advice)
    if build.has_driver and build.visible is not None and build.visible.strip() in ("", "-1"):
        return warning("available", f"hidden by CUDA_VISIBLE_DEVICES={build.visible!r}", "unset it to train on them")
    if build.has_driver:
        advice = "update the driver, or install a torch for an older CUDA; nvidia-smi must list the GPUs"
        return problem("available", f"torch for CUDA {build.cuda} cannot use them: {build.reason}", advice)
    return warning("available", "none; a run trains on the CPU", "enough for tests and the demo, not for pretraining")


def own_gpu(device: torch.device) -> Gpu:
    """Of this process's view of `device`."""
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return Gpu(
        name=properties.name,
        capability=(properties.major, properties.minor),
        memory=total,
        free=free,
        uuid=str(properties.uuid),
        peak=peak_flops(device),
    )


def judge_gpu(gpu: Gpu, driver: FromDriver | None, *, precision: Precision | None, builds: Sequence[str]) -> Finding:
    """Whether torch has kernels for it, and it the arithmetic that the run wants.

    Args:
        gpu: as found.
        driver: what nvidia-smi says, where it is there.
        precision: of the config, where one was given.
        builds: what torch was compiled for: sm_90, compute_120.
    """
    major, minor = gpu.capability
    known = f", driver {driver.driver}" if driver else ""
    found = f"{gpu.name}, {num_bytes(gpu.memory)}, compute capability {major}.{minor}{known}"
    if not has_kernels(gpu.capability, builds):
        return problem("GPU", f"{found}; torch has kernels for {', '.join(builds)}", "install a torch built for it")
    if driver and driver.uncorrected_errors:
        advice = "take it out of the job and reset it; if they come back, have it replaced"
        return problem("GPU", f"{found}, {driver.uncorrected_errors} uncorrected ECC errors", advice)
    least = _CAPABILITIES.get(precision or "bf16", (0, 0))
    if gpu.capability < least:
        advice = "set precision=bf16" if gpu.capability >= _CAPABILITIES["bf16"] else "set precision=fp16"
        return (warning if precision is None else problem)("GPU", f"{found}: no {precision or 'bf16'}", advice)
    able = [name for name, needed in _CAPABILITIES.items() if gpu.capability >= needed]
    return ok("GPU", f"{found}, {' and '.join(able) or 'no bf16'}")


def judge_occupation(gpu: Gpu, processes: Sequence[str]) -> Finding:
    """Whether somebody else holds its memory; asked before this process takes any."""
    used = gpu.memory - gpu.free
    found = f"{num_bytes(gpu.free)} free of {num_bytes(gpu.memory)}"
    if used <= _FOREIGN_MEMORY:
        return ok("GPU memory", found)
    who = f" by {'; '.join(processes)}" if processes else ""
    return warning("GPU memory", f"{found}, taken{who}", "end what runs there (nvidia-smi lists it), or choose another")


def judge_products(flops: float, peak: float | None) -> Finding:
    """Speed of large bf16 matrix products beside the published peak."""
    figure = Figure(flops, f"{flops / 1e12:,.0f} TFLOP/s", alike=True)
    if peak is None:
        return ok("matrix products", f"{figure.text} in bf16; this GPU's peak is not known to clipx", figure)
    share = flops / peak
    found = f"{figure.text} in bf16, {share:.0%} of the published {peak / 1e12:,.0f}"
    if share < _BROKEN_SHARE:
        advice = "shared with another job, throttled or broken: nvidia-smi -q -d PERFORMANCE,TEMPERATURE says why"
        return problem("matrix products", found, advice, figure)
    if share < _SLOW_SHARE:
        advice = "hot, limited in power, or shared: nvidia-smi -q -d PERFORMANCE,POWER says why"
        return warning("matrix products", found, advice, figure)
    return ok("matrix products", found, figure)


def measure_products(device: torch.device) -> float:
    """FLOP/s of 8192 x 8192 products of random bf16 matrices (zeros would draw less power and look faster)."""
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


def has_kernels(capability: tuple[int, int], builds: Sequence[str]) -> bool:
    """Whether a build runs on a GPU: code of its generation, or code that the driver compiles for later ones."""
    number = 10 * capability[0] + capability[1]
    for build in builds:
        kind, _, text = build.partition("_")
        compiled_for = int(re.sub(r"\D", "", text) or 0)
        same_generation = compiled_for // 10 == capability[0]
        if compiled_for <= number and (same_generation or kind == "compute"):
            return True
    return False


def ask_driver() -> dict[str, FromDriver]:
    """What nvidia-smi says, by UUID as torch writes it; empty where it is absent, slow or says something else."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    try:
        gpus, processes = (
            subprocess.run(
                [command, f"--query-{what}", "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
                timeout=_QUERY_S,
                check=True,
            ).stdout
            for what in (f"gpu={_FIELDS}", "compute-apps=gpu_uuid,pid,process_name,used_memory")
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_driver(gpus, processes)


def parse_driver(gpus: str, processes: str) -> dict[str, FromDriver]:
    """nvidia-smi's two tables as one, by UUID; this process is left out."""
    running = [row for row in map(_cells, processes.splitlines()) if len(row) == 4 and row[1] != str(os.getpid())]
    found = {}
    for row in map(_cells, gpus.splitlines()):
        if len(row) == 3:
            names = tuple(f"{name} (process {pid}, {mib} MiB)" for uuid, pid, name, mib in running if uuid == row[0])
            errors = int(row[2]) if row[2].isdigit() else None
            found[row[0].removeprefix("GPU-")] = FromDriver(row[1], errors, names)
    return found


def look_at_gpu(device: torch.device, driver: FromDriver | None, *, precision: Precision | None) -> list[Finding]:
    """All lines about one GPU."""
    gpu = own_gpu(device)
    return [
        judge_gpu(gpu, driver, precision=precision, builds=torch.cuda.get_arch_list()),
        judge_occupation(gpu, driver.processes if driver else ()),
        judge_products(measure_products(device), gpu.peak),
    ]


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split(",")]
