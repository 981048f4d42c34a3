"""Whether pictures come fast enough: decoding on a core, and reading from where the shards lie."""

import io
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image

from clipx.config.data import DataConfig, RemoteConfig, sources
from clipx.config.schema import RunConfig
from clipx.data.decode import can_scale
from clipx.data.index.shard_list import expand_shards
from clipx.data.transforms import TrainTransform
from clipx.data.workers import measure_picture
from clipx.doctor.findings import MIB, Figure, Finding, ok, problem, rounded, speed, warning
from clipx.errors import InputError
from clipx.storage.failures import hint
from clipx.storage.files import is_local, open_ranges
from clipx.storage.remote import state

PACE = 1000
"""Pairs per second in which figures are put: a third of what an H100 trains of ViT-B/16 (123 GFLOP a pair, MFU 40%)."""
# A third of the 571 pictures/s of 512 px that one core of an EPYC loads (benchmarks/LOG.md); 449 on one that is shared.
_SLOW_DECODING = 190
# A JPEG of 512 px as img2dataset writes them (benchmarks/LOG.md).
_BYTES_PER_PAIR = 60_000
_SLOW_READING = PACE * _BYTES_PER_PAIR
# Longer than the batches that are read ahead cover: two of them at PACE and 4,096 pairs are 8 s, at 128 pairs 0.25 s.
_SLOW_ANSWER_S = 0.25
_BLOCK, _SCRATCH, _FOLIOS = 1_000_000, 64 * MIB, 4 * MIB
_SHARDS, _MOST_READS, _MOST_S = 8, 64, 4.0
_READERS = 8  # at once, as data.remote.connections
_HEADROOM = 1.25  # as clipx.data.workers: hyper-threads share units

T = TypeVar("T")


class ReadSpeed(NamedTuple):
    """Random reads of 1 MB."""

    alone: float
    """Bytes per second, one read after the other."""
    together: float
    """Bytes per second, eight reads at once."""
    answer_s: float
    """Median seconds of a read that is alone."""


def look_at_decoding(config: RunConfig | None) -> list[Finding]:
    """Pictures that a core decodes, crops and resizes in a second, and the fast decoder's presence."""
    image_size = 224 if config is None else config.model.image.image_size
    data = DataConfig(train=["none"]) if config is None else config.data
    transform = TrainTransform(image_size, data.augment, decode=data.decode)
    out = torch.empty(image_size, image_size, 3, dtype=torch.uint8)
    picture_s = measure_picture(lambda number: transform(_photograph(), seed=number, out=out))
    return [judge_decoding(1 / picture_s, image_size), judge_decoder(present=can_scale())]


def judge_decoding(pictures_per_s: float, image_size: int) -> Finding:
    """Pictures that one core prepares in a second."""
    cores = PACE / pictures_per_s * _HEADROOM
    figure = Figure(pictures_per_s, f"{pictures_per_s:,.0f} pictures/s", alike=True)
    found = f"{figure.text} a core (512 x 512 JPEG to {image_size} px): {PACE:,} pairs/s take {rounded(cores, 2)} cores"
    if pictures_per_s < _SLOW_DECODING:
        advice = "smaller pictures (clipx data make --size), data.decode=scaled, or more cores for a GPU"
        return warning("decoding", found, advice, figure)
    return ok("decoding", found, figure)


def judge_decoder(*, present: bool) -> Finding:
    """Whether simplejpeg is here."""
    if present:
        return ok("simplejpeg", "installed")
    return warning(
        "simplejpeg", "not installed: pictures decode slower, data.decode=scaled not at all", "pip install simplejpeg"
    )


def look_at_shards(config: RunConfig) -> list[Finding]:
    """A line for each source of the config: its shards are there, and how fast they are read."""
    return [
        _look_at_source(name=f"read {source.name}", patterns=source.shards, remote=config.data.remote)
        for source in sources(config.data)
    ]


def look_at_folder(folder: Path) -> Finding:
    """How fast files in `folder` are read: those of 1 MB and more that lie there, else one that is written for it."""
    name = "read"
    try:
        paths = [entry.path for entry in os.scandir(folder) if entry.is_file() and entry.stat().st_size >= _BLOCK]
        if paths:
            return _in(folder, judge_reading(name, _measure_files(_some(paths), RemoteConfig())))
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clipx-doctor-") as file:
            file.write(os.urandom(MIB) * (_SCRATCH // MIB))
            file.flush()
            os.fsync(file.fileno())
            return _in(folder, judge_reading(name, _measure_files([file.name], RemoteConfig())))
    except OSError as error:
        return problem(name, f"{folder}: {error.strerror or error}", hint(error))


def judge_reading(name: str, found: ReadSpeed) -> Finding:
    """Whether the storage keeps up with loading."""
    pairs = found.together / _BYTES_PER_PAIR
    figure = Figure(found.together, speed(found.together))
    text = (
        f"{speed(found.alone)} by one reader, {figure.text} by {_READERS} "
        f"({pairs:,.0f} pairs/s of {_BYTES_PER_PAIR // 1000} kB); 1 MB takes {rounded(1e3 * found.answer_s)} ms"
    )
    if found.together < _SLOW_READING:
        advice = "a GPU would wait for it: move the shards nearer, or keep them on a local disk (data.cache.folder)"
        return warning(name, text, advice, figure)
    if found.answer_s > _SLOW_ANSWER_S:
        advice = "raise data.remote.read_ahead_batches and data.remote.connections, so that waiting is done ahead"
        return warning(name, text, advice, figure)
    return ok(name, text, figure)


def _look_at_source(*, name: str, patterns: Sequence[str], remote: RemoteConfig) -> Finding:
    try:
        paths = expand_shards(patterns)
    except InputError as error:
        return problem(name, str(error), "on every machine of the job the shards must be there under the same name")
    chosen = _some(range(len(paths)))
    readable = [path for path in (paths[number] for number in chosen) if _gives_parts(path, remote)]
    if not readable:
        advice = "each shard is fetched whole before it is read; a store that gives parts starts sooner"
        return warning(name, f"{len(paths):,} shards, which are commands or on a server without ranges", advice)
    try:
        found = judge_reading(name, _measure_files(readable, _once(remote)))
    except OSError as error:
        return problem(name, f"{readable[0]}: {error}", hint(error))
    return _in(f"{len(paths):,} shards", found)


def _in(place: object, finding: Finding) -> Finding:
    return replace(finding, found=f"{place}: {finding.found}")


def _measure_files(paths: Sequence[str], remote: RemoteConfig) -> ReadSpeed:
    """Reads at random places, first one after the other, then eight at once; at most 4 s each."""
    times_s: list[float] = []
    files = [open_ranges(path, remote=remote) for path in paths]
    for file in files:
        if file.size == 0:
            raise OSError("the file is empty")
    draw = random.Random(os.getpid())  # ranks and later calls read other places, which no cache holds

    def read(_: int) -> int:
        number = draw.randrange(len(files))
        offset = draw.randrange(max(1, files[number].size - _BLOCK))
        if is_local(paths[number]):
            _drop_from_cache(paths[number], offset)
        began = time.perf_counter()
        length = len(files[number].read_at(offset, _BLOCK))
        times_s.append(time.perf_counter() - began)
        return length

    try:
        alone = _bytes_per_second(lambda ends_at: sum(_until(ends_at, read)))
        answer_s = median(times_s)
        with ThreadPoolExecutor(_READERS) as pool:
            together = _bytes_per_second(
                lambda ends_at: sum(pool.map(lambda _: sum(_until(ends_at, read)), range(_READERS)))
            )
    finally:
        for file in files:
            file.close()
    return ReadSpeed(alone, together, answer_s)


def _until(ends_at: float, read: Callable[[int], int]) -> list[int]:
    lengths: list[int] = []
    while len(lengths) < _MOST_READS and (not lengths or time.perf_counter() < ends_at):
        lengths.append(read(len(lengths)))
    return lengths


def _bytes_per_second(read_until: Callable[[float], int]) -> float:
    began = time.perf_counter()
    return read_until(began + _MOST_S) / (time.perf_counter() - began)


def _drop_from_cache(path: str, offset: int) -> None:
    """What lay in memory says nothing about the disk. Pages go by folios of up to 2 MiB, and only whole ones."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    start = offset - offset % _FOLIOS
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, start, 2 * _FOLIOS, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _gives_parts(path: str, remote: RemoteConfig) -> bool:
    """Whether a part can be read without fetching the whole; a server that does not answer is found by reading."""
    if path.startswith("pipe:"):
        return False
    try:
        return is_local(path) or state(path, _once(remote)).ranges
    except OSError:
        return True


def _once(remote: RemoteConfig) -> RemoteConfig:
    return replace(remote, retries=0, timeout_s=min(remote.timeout_s, 10.0))


def _some(items: Sequence[T]) -> list[T]:
    """A few of many, others each time."""
    return random.sample(items, min(_SHARDS, len(items)))


@cache
def _photograph() -> bytes:
    """A JPEG of 512 x 512 with the smooth shapes, edges and grain of a photograph, some 60 kB."""
    noise = np.random.default_rng(0)
    shapes = Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    pixels = np.asarray(shapes.resize((512, 512), Image.Resampling.BICUBIC), dtype=np.float32)
    grainy = (pixels + noise.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grainy).save(file, "JPEG", quality=85)
    return file.getvalue()
