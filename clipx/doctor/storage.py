"""Storage: how fast the data is read, whether a run's folders can be written and how fast, space for checkpoints."""

import os
import random
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from clipx.config.data import RemoteConfig, sources
from clipx.config.fit import FitConfig
from clipx.config.schema import JobConfig
from clipx.data.index.shard_list import expand_shards
from clipx.data.tokenizer import build_tokenizer
from clipx.doctor.finding import MIB, Finding, Measurement, failed, num_bytes, ok, problem, rounded, speed, warning
from clipx.doctor.machine import PACE
from clipx.errors import ClipxError, InputError, some_names
from clipx.models.clip import build_model
from clipx.storage.files import RangeReader, is_local, open_ranges, read_file, write_file
from clipx.storage.remote import ask, state

# A JPEG of 512 px as img2dataset writes them (benchmarks/LOG.md).
_BYTES_PER_PAIR = 60_000
_SLOW_READING = PACE * _BYTES_PER_PAIR
_BLOCK, _FOLIOS = 1_000_000, 4 * MIB  # the kernel's folios have up to 2 MiB
_MAX_SHARDS, _MAX_READS, _MAX_S = 8, 64, 4.0
_READERS = 8  # at once, as data.remote.connections
# Weights and two moments in float32; an average of the weights is a fourth number.
_BYTES_PER_PARAMETER, _BYTES_OF_AVERAGE = 12, 4
_CHECKPOINT = 1_800_000_000  # without a config: a ViT-B/32
_LONG_SAVE_S = 30
_PIECE, _PIECES = 4 * MIB, 24


def check_folder(folder: Path) -> list[Finding]:
    """How fast a file in `folder` is written and read, for a doctor without a config."""
    try:
        with _scratch_file(folder) as path:
            written = measure_writing(path)
            read = measure_reading([str(path)], RemoteConfig())
    except OSError as error:
        return [failed("write", error, place=folder)]
    return [
        check_read_speed("read", str(folder), read),
        check_write_speed("write", str(folder), written, checkpoint=None, background=False),
    ]


def check_shards(config: JobConfig) -> list[Finding]:
    """A line for each data source of the config: whether its shards are there, and how fast they are read.

    A fit run that has not begun has a table, of which the run makes shards.
    """
    if isinstance(config, FitConfig) and config.data.train_shards is None:
        return [_check_table(config)]
    remote = replace(config.data.remote, retries=0, timeout_s=min(config.data.remote.timeout_s, 10.0))
    return [_check_source(f"read {source.name}", source.shards, remote) for source in sources(config.data)]


def _check_table(config: FitConfig) -> Finding:
    """Whether what shards will be made of is there."""
    tables, later = config.data.train, "becomes shards in run_dir when the run begins"
    missing = [table for table in tables if is_local(table) and not Path(table).exists()]
    if missing:
        return problem("read train", f"data.train: {missing[0]} is not there", "name a table, a folder or shards")
    return ok("read train", f"{some_names(tables)} {later}")


def check_run_folders(config: JobConfig) -> list[Finding]:
    """All lines about run_dir, and about checkpoint.folder if it is another place."""
    findings, checkpoint = [], None
    try:
        checkpoint = checkpoint_bytes(config)
    except ClipxError as error:
        findings.append(problem("model", str(error), "a run would end with the same message"))
    folder = config.checkpoint.folder
    findings += _check_local("run_dir", config.run_dir, config, checkpoint=None if folder else checkpoint)
    if folder is None:
        return findings
    if is_local(folder):
        return findings + _check_local("checkpoint.folder", folder, config, checkpoint=checkpoint)
    return [*findings, _check_remote(folder, config, checkpoint=checkpoint)]


def check_read_speed(name: str, place: str, bytes_per_s: float) -> Finding:
    """Whether the storage is fast enough to train from; the speed is that of eight readers together."""
    pairs = f"{bytes_per_s / _BYTES_PER_PAIR:,.0f} pairs/s of {_BYTES_PER_PAIR // 1000} kB"
    value = f"{place}: {speed(bytes_per_s)} by {_READERS} readers ({pairs})"
    if bytes_per_s < _SLOW_READING:
        hint = "move the shards nearer, keep them on a local disk (data.cache.folder), or raise data.remote.connections"
        return warning(name, value, f"a GPU would wait for it: {hint}", Measurement(bytes_per_s))
    return ok(name, value, Measurement(bytes_per_s))


def check_write_speed(
    name: str, place: str, bytes_per_s: float, *, checkpoint: int | None, background: bool
) -> Finding:
    """Whether one process saves a checkpoint of so many bytes fast enough; in the background training does not wait."""
    save_s = (_CHECKPOINT if checkpoint is None else checkpoint) / bytes_per_s
    value = f"{place}: {speed(bytes_per_s)} written and synced"
    if checkpoint is not None:
        value += f" by one process; a checkpoint of {num_bytes(checkpoint)} takes {rounded(save_s)} s"
    if save_s > _LONG_SAVE_S and not background:
        hint = "training waits for it: choose a faster disk, or set checkpoint.async_save=true"
        return warning(name, value, hint, Measurement(bytes_per_s))
    return ok(name, value, Measurement(bytes_per_s))


def check_space(name: str, free: int, *, checkpoint: int, kept: int) -> Finding:
    """Whether there is space for the checkpoints that are kept, and for the one that is being written; in bytes."""
    needed, size = (kept + 1) * checkpoint, num_bytes(checkpoint)
    value = f"{num_bytes(free)} free; {kept} checkpoints of {size} and one under way: {num_bytes(needed)}"
    if free < 2 * checkpoint:
        return problem(name, value, "saving will fail: make room, or choose another run_dir or checkpoint.folder")
    if free < needed:
        return warning(name, value, "it will fill up: make room, or lower checkpoint.keep_last or keep_every")
    return ok(name, value)


def measure_reading(paths: Sequence[str], remote: RemoteConfig) -> float:
    """Bytes per second of reads of 1 MB at random places of the files, eight at once, for at most 4 s.

    Raises:
        OSError: a file cannot be read, or is empty.
    """
    with ExitStack() as stack:
        files = {path: stack.enter_context(closing(open_ranges(path, remote=remote))) for path in paths}
        for path, file in files.items():
            if file.size == 0:
                raise OSError(f"{path}: the file is empty")
        began = time.perf_counter()
        with ThreadPoolExecutor(_READERS) as pool:
            num_bytes_read = sum(pool.map(lambda _: _read_blocks(files, began + _MAX_S), range(_READERS)))
        return num_bytes_read / (time.perf_counter() - began)


def measure_writing(path: Path) -> float:
    """Bytes per second of up to 96 MiB that are written to a file and synced to the disk, in a few seconds.

    Raises:
        OSError: the file cannot be written.
    """
    content, written = os.urandom(_PIECE), 0
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(_PIECES):
            written += file.write(content)
            if time.perf_counter() - began > _MAX_S:
                break
        os.fsync(file.fileno())
    return written / (time.perf_counter() - began)


def checkpoint_bytes(config: JobConfig) -> int:
    """Approximate bytes of a checkpoint (some optimizers keep one moment less); allocates no weights.

    Raises:
        ClipxError: the model or its tokenizer cannot be built.
    """
    image, vocab_size = replace(config.model.image, pretrained=False), build_tokenizer(config.model.text).vocab_size
    with torch.device("meta"):
        model = build_model(replace(config.model, image=image), vocab_size=vocab_size, seed=0)
    bytes_per_parameter = _BYTES_PER_PARAMETER + (0 if config.ema is None else _BYTES_OF_AVERAGE)
    return bytes_per_parameter * sum(parameter.numel() for parameter in model.parameters())


def existing_parent(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.isdir(path))


def _check_source(name: str, patterns: Sequence[str], remote: RemoteConfig) -> Finding:
    try:
        paths = expand_shards(patterns)
    except InputError as error:
        return problem(name, str(error), "on every machine of the job the shards must be there under the same name")
    place = f"{len(paths):,} shards"
    some = [paths[index] for index in random.sample(range(len(paths)), min(_MAX_SHARDS, len(paths)))]
    readable = [path for path in some if _has_ranges(path, remote)]
    if not readable:
        hint = "each shard is fetched whole before it is read; a store that gives parts starts sooner"
        return warning(name, f"{place}, which are commands or on a server without ranges", hint)
    try:
        return check_read_speed(name, place, measure_reading(readable, remote))
    except OSError as error:
        return failed(name, error, place=f"{place}, such as {readable[0]}")


def _check_local(key: str, folder: str, config: JobConfig, *, checkpoint: int | None) -> list[Finding]:
    name, background = f"write {key}", config.checkpoint.async_save
    try:
        with _scratch_file(Path(folder)) as path:
            written = measure_writing(path)
            status = os.statvfs(path)
    except OSError as error:
        return [failed(name, error, place=folder)]
    findings = [check_write_speed(name, folder, written, checkpoint=checkpoint, background=background)]
    if checkpoint is not None:
        every = config.checkpoint.keep_every
        kept = config.checkpoint.keep_last + (config.num_steps // every if every else 0)
        free = status.f_bavail * status.f_frsize
        findings.append(check_space(f"room in {key}", free, checkpoint=checkpoint, kept=kept))
    return findings


def _check_remote(folder: str, config: JobConfig, *, checkpoint: int | None) -> Finding:
    """Writes, reads back and removes one object."""
    name, background = "write checkpoint.folder", config.checkpoint.async_save
    url, content = f"{folder.rstrip('/')}/.clipx-doctor-{secrets.token_hex(4)}", os.urandom(_PIECE)
    try:
        began = time.perf_counter()
        write_file(url, content)
        written = _PIECE / (time.perf_counter() - began)
        same = read_file(url) == content
        ask(url, "rm_file")
    except OSError as error:
        return failed(name, error, place=folder)
    if not same:
        return problem(name, f"{folder}: what was written is not what is read", "do not keep checkpoints there")
    return check_write_speed(name, folder, written, checkpoint=checkpoint, background=background)


@contextmanager
def _scratch_file(folder: Path) -> Iterator[Path]:
    """A file in the folder, or in the nearest one above it that exists, which is gone afterwards."""
    with tempfile.NamedTemporaryFile(dir=existing_parent(folder), prefix=".clipx-doctor-") as file:
        yield Path(file.name)


def _read_blocks(files: Mapping[str, RangeReader], ends_at: float) -> int:
    """Bytes that one reader has read at the end; it makes one read even if the time is already over."""
    num_bytes_read = 0
    for count in range(_MAX_READS):
        if count and time.perf_counter() >= ends_at:
            break
        path = random.choice(list(files))  # ranks and later calls read other places, which no cache holds
        offset = random.randrange(max(1, files[path].size - _BLOCK))
        if is_local(path):
            _drop_from_cache(path, offset)
        num_bytes_read += len(files[path].read_at(offset, _BLOCK))
    return num_bytes_read


def _drop_from_cache(path: str, offset: int) -> None:
    """Drops a part of the file from memory, so that it is read from the disk; the kernel drops whole folios alone."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), offset - offset % _FOLIOS, 2 * _FOLIOS, os.POSIX_FADV_DONTNEED)


def _has_ranges(path: str, remote: RemoteConfig) -> bool:
    """Whether a part can be read without fetching the whole; a server that does not answer shows that when read."""
    if path.startswith("pipe:"):
        return False
    try:
        return is_local(path) or state(path, remote).ranges
    except OSError:
        return True
