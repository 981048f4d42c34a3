"""Whether the machine or container has the cores and memory that its ranks need, and how fast a core loads images."""

import io
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipx.config.data import AugmentConfig, DataConfig
from clipx.config.schema import JobConfig
from clipx.data.decode import can_scale
from clipx.data.transforms import TrainTransform
from clipx.data.workers import measure_image
from clipx.doctor.finding import GIB, MIB, Finding, Measurement, num_bytes, ok, problem, rounded, warning
from clipx.host import Cores, Memory

PACE = 1000
"""Pairs per second to compare speeds with: a third of what an H100 trains of ViT-B/16 (123 GFLOP a pair, MFU 40%)."""
# A third of the 571 images/s of 512 px that one core of an EPYC loads (benchmarks/LOG.md); 449 on one that is shared.
_SLOW_DECODING = 190
_HEADROOM = 1.25  # as in clipx.data.workers: hyper-threads share units
# One core trains, three load: an image takes 0.9 to 4.6 ms of a core (benchmarks/LOG.md), so they load 650 to 3,300/s.
_CORES_PER_GPU = 4
# Twice what a rank with three loader processes holds beside the model (the soak test in benchmarks/LOG.md).
_MEMORY_PER_RANK, _MIN_MEMORY_PER_RANK = 4 * GIB, 1 * GIB
# NCCL's guide asks containers for --shm-size=1g. Images do not go through it (clipx.data.buffers), texts do.
_SHARED_MEMORY, _MIN_SHARED_MEMORY = 1 * GIB, 32 * MIB


def check_cores(cores: Cores, *, ranks_here: int, share: float, on_gpu: bool) -> Finding:
    """Whether there are enough cores to train and to load; `share` is the number of cores for this rank alone."""
    quota = "" if cores.quota is None else f", a quota of {cores.quota:.3g}"
    per_rank = "" if ranks_here == 1 else f", {share:.3g} for each of {ranks_here} ranks"
    value = f"{len(cores.numbers)} cores{quota}{per_rank}"
    if share < 1:
        return problem("cores", value, "start fewer ranks on this machine, or ask for more cores")
    if cores.quota is not None and cores.quota < len(cores.numbers) / 2:
        hint = "libraries start a thread per core and are then throttled: set OMP_NUM_THREADS to the quota's share"
        return warning("cores", value, hint)
    if on_gpu and share < _CORES_PER_GPU:
        hint = f"a GPU wants {_CORES_PER_GPU} or more to load images for it; `clipx plan` says how many a run needs"
        return warning("cores", value, hint)
    return ok("cores", value)


def check_memory(memory: Memory, *, ranks_here: int) -> Finding:
    """Whether the ranks of this machine and their loader processes have room."""
    per_rank = memory.available / ranks_here
    value = f"{num_bytes(memory.available)} free of {num_bytes(memory.total)}"
    measurement = Measurement(per_rank)
    if per_rank < _MIN_MEMORY_PER_RANK:
        return problem("memory", value, "the kernel will end processes: free memory or start fewer ranks", measurement)
    if per_rank < _MEMORY_PER_RANK:
        hint = f"have {num_bytes(_MEMORY_PER_RANK)} for each rank, or lower data.workers"
        return warning("memory", value, hint, measurement)
    return ok("memory", value, measurement)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Whether /dev/shm, which NCCL and loader processes use to hand over data, is there and large enough."""
    if not folder.is_dir():
        return problem("/dev/shm", "not there", "mount a tmpfs at /dev/shm")
    status = os.statvfs(folder)
    total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    value = f"{num_bytes(free)} free of {num_bytes(total)}"
    hint = "docker run --shm-size=8g (Kubernetes: an emptyDir of medium Memory at /dev/shm)"
    if free < _MIN_SHARED_MEMORY:
        return problem("/dev/shm", value, f"a run would end with a bus error; make room in it, or {hint}")
    if total < _SHARED_MEMORY:
        return warning("/dev/shm", value, f"NCCL between several GPUs wants 1 GiB: {hint}")
    return ok("/dev/shm", value)


def check_decoding(config: JobConfig | None) -> Finding:
    """How many images one core decodes, crops and resizes in a second; without a config to 224 px."""
    image_size = 224 if config is None else config.model.image.image_size
    data = DataConfig(train=["none"]) if config is None else config.data
    interpolation = "bicubic" if config is None else config.model.image.interpolation
    transform = TrainTransform(
        image_size, data.augment or AugmentConfig(), decode=data.decode, interpolation=interpolation
    )
    out = torch.empty(image_size, image_size, 3, dtype=torch.uint8)
    seconds = measure_image(lambda number: transform(_sample_jpeg(), seed=number, out=out))
    return check_decode_speed(1 / seconds, image_size, has_simplejpeg=can_scale())


def check_decode_speed(images_per_s: float, image_size: int, *, has_simplejpeg: bool) -> Finding:
    """Whether one core prepares enough images, square ones of `image_size` pixels, in a second."""
    cores = PACE / images_per_s * _HEADROOM
    value = (
        f"{images_per_s:,.0f} pictures/s a core (512 x 512 JPEG to {image_size} px): "
        f"{PACE:,} pairs/s take {rounded(cores, 2)} cores"
    )
    measurement = Measurement(images_per_s, comparable=True)
    if not has_simplejpeg:
        value += "; simplejpeg is missing: decoding is slower, and data.decode=scaled does not work"
        return warning("decoding", value, "pip install simplejpeg", measurement)
    if images_per_s < _SLOW_DECODING:
        hint = "smaller images (clipx data make --size), data.decode=scaled, or more cores for a GPU"
        return warning("decoding", value, hint, measurement)
    return ok("decoding", value, measurement)


@cache
def _sample_jpeg() -> bytes:
    """A JPEG of 512 x 512 with the smooth shapes, edges and grain of a photograph, about 60 kB."""
    noise = np.random.default_rng(0)
    shapes = Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    pixels = np.asarray(shapes.resize((512, 512), Image.Resampling.BICUBIC), dtype=np.float32)
    grainy = (pixels + noise.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grainy).save(file, "JPEG", quality=85)
    return file.getvalue()
