"""Which code computes a tile: torch's own operations, on any device, or fused Triton kernels, on CUDA.

Both are exact and share all that is above a tile. Kernels take float32, bfloat16 and float16, and every width; float64
is computed by torch whatever was chosen. `auto` leaves float32 to torch too: no tensor core multiplies it exactly, so
that products take nearly all of the time, and those of torch's libraries are at least as fast.
"""

import logging
import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from clipx.errors import InputError

log = logging.getLogger(__name__)

IMPLEMENTATIONS = ("auto", "tiled", "triton")


def check_implementation(name: str, device: torch.device) -> None:
    """Says early what would fail in the first step, with embeddings on this device.

    Raises:
        InputError: no such implementation, or triton on a device that cannot run it (`TRITON_INTERPRET=1` interprets
            the kernels on a CPU, slowly, for tests).
    """
    if name not in IMPLEMENTATIONS:
        raise InputError(f"loss.implementation={name} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
    if name == "triton" and not _can_run(device):
        raise InputError(
            f"loss.implementation=triton needs a CUDA device and the triton package, and this run is on {device.type}"
            f"{'' if _has_triton() else ' without triton'}; choose auto or tiled"
        )


def use_kernels(name: str, x: Tensor, *, several_positives: bool) -> bool:
    """Whether tiles of x (B, D) are computed by kernels; `auto` takes them where they run and are faster.

    Raises:
        InputError: as `check_implementation`.
    """
    check_implementation(name, x.device)
    if name == "tiled" or x.dtype == torch.float64:
        return False
    if name == "auto" and (not x.is_cuda or x.dtype == torch.float32):
        return False
    return _can_run(x.device) and _compile(x.device, x.dtype, x.shape[1], several_positives)


def _can_run(device: torch.device) -> bool:
    is_interpreting = os.environ.get("TRITON_INTERPRET") == "1"  # triton itself takes seconds to import
    return _has_triton() and (device.type == "cuda" or is_interpreting)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _compile(device: torch.device, dtype: torch.dtype, width: int, several_positives: bool) -> bool:
    """Whether the kernels compile and run; tried once on a few pairs, so that a failure costs speed, not the run."""
    from clipx.losses import triton_ops

    if device.type != "cuda":
        return True  # interpreted: nothing to compile
    try:
        triton_ops.try_all(width, dtype, device, several_positives=several_positives)
        torch.cuda.synchronize(device)
    except Exception as problem:  # Triton raises its own, the C compiler's and the driver's errors
        log.warning(
            "loss: the Triton kernels for %s of width %d fail on this device (%s: %s); torch's tiles take over",
            str(dtype).removeprefix("torch."),
            width,
            type(problem).__name__,
            str(problem).partition("\n")[0],
        )
        return False
    return True
