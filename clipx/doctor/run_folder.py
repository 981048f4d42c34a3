"""Where a run writes: may it, is there room for its checkpoints, do locks and renames hold, and how fast is it."""

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from clipx.config.schema import RunConfig
from clipx.data.tokenizer import build_tokenizer
from clipx.doctor.findings import MIB, Figure, Finding, num_bytes, ok, problem, rounded, speed, warning
from clipx.models.clip import build_model
from clipx.storage.failures import hint
from clipx.storage.files import is_local, read_file, write_file
from clipx.storage.remote import ask

# Weights and two moments in float32; an average of the weights is a fourth.
_BYTES_PER_PARAMETER, _BYTES_OF_AVERAGE = 12, 4
# Without a config: a ViT-B/32 with its moments (1.8 GB) in half a minute.
_SLOW_WRITING = 60e6
# A save that stops training for longer is worth the memory of a save in the background.
_LONG_SAVE_S = 30
_PIECE, _PIECES, _MOST_S = 4 * MIB, 24, 4.0
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


class Writing(NamedTuple):
    """What a folder could do."""

    free: int
    """Bytes that this user may still write."""
    bytes_per_s: float
    """Written and synced to the disk."""
    locks: bool
    """Whether flock keeps a second holder out."""
    renames: bool
    """Whether a folder is renamed, and a file over another, at once."""
    file_system: str
    """Its type, as ext4; empty where it is not known."""


def num_parameters(config: RunConfig) -> int:
    """Of both towers; nothing is allocated."""
    image, vocab_size = replace(config.model.image, pretrained=False), build_tokenizer(config.model.text).vocab_size
    with torch.device("meta"):
        model = build_model(replace(config.model, image=image), vocab_size=vocab_size, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


def look_at_run_folder(config: RunConfig, *, parameters: int | None) -> list[Finding]:
    """Every line about run_dir, and about checkpoint.folder where that is elsewhere.

    Args:
        config: of the run.
        parameters: of the model, where they could be counted.
    """
    each = _BYTES_PER_PARAMETER + (0 if config.ema is None else _BYTES_OF_AVERAGE)
    size = None if parameters is None else each * parameters  # about: some optimizers keep one moment less
    run_dir, folder = Path(config.run_dir), config.checkpoint.folder
    if folder is None:
        return _look_at_local("run_dir", run_dir, config=config, checkpoint=size)
    of_run = _look_at_local("run_dir", run_dir, config=config, checkpoint=None)
    if is_local(folder):
        return of_run + _look_at_local("checkpoint.folder", Path(folder), config=config, checkpoint=size)
    return [*of_run, _look_at_remote(folder, checkpoint=size, background=config.checkpoint.async_save)]


def look_at_folder(folder: Path) -> Finding:
    """How fast `folder` is written to, where no config says what will be."""
    try:
        found = judge_speed("write", measure_writing(folder).bytes_per_s, checkpoint=None, background=False)
    except OSError as error:
        return problem("write", f"{folder}: {error.strerror or error}", hint(error))
    return replace(found, found=f"{folder}: {found.found}")


def measure_writing(folder: Path) -> Writing:
    """Tries everything in a scratch folder, which is gone afterwards.

    Raises:
        OSError: it cannot be written.
    """
    with _scratch(folder) as scratch:
        locks, renames = _can_lock(scratch / "lock"), _can_rename(scratch)
        written = _write_speed(scratch / "data")
        state = os.statvfs(scratch)
        return Writing(state.f_bavail * state.f_frsize, written, locks, renames, _file_system(scratch))


def judge_room(name: str, free: int, *, checkpoint: int, kept: int) -> Finding:
    """Whether the checkpoints that are kept fit, and the one that is being written.

    Args:
        name: of the line.
        free: bytes.
        checkpoint: bytes of one.
        kept: how many stay.
    """
    needed = (kept + 1) * checkpoint
    found = (
        f"{num_bytes(free)} free; {kept} checkpoints of {num_bytes(checkpoint)} and one under way: {num_bytes(needed)}"
    )
    if free < 2 * checkpoint:
        return problem(name, found, "saving will fail: make room, or choose another run_dir or checkpoint.folder")
    if free < needed:
        return warning(name, found, "it will fill up: make room, or lower checkpoint.keep_last or keep_every")
    return ok(name, found)


def judge_speed(name: str, bytes_per_s: float, *, checkpoint: int | None, background: bool) -> Finding:
    """Whether saving is fast enough.

    Args:
        name: of the line.
        bytes_per_s: written and synced by one process.
        checkpoint: bytes of one, where a config says so.
        background: whether checkpoint.async_save is on.
    """
    found, figure = f"{speed(bytes_per_s)} written and synced", Figure(bytes_per_s, speed(bytes_per_s))
    if checkpoint is None:
        if bytes_per_s < _SLOW_WRITING:
            return warning(name, found, "a checkpoint takes long here: choose a faster disk for run_dir", figure)
        return ok(name, found, figure)
    save_s = checkpoint / bytes_per_s
    found += f" by one process: a checkpoint of {num_bytes(checkpoint)} takes {rounded(save_s)} s"
    if save_s > _LONG_SAVE_S and not background:
        return warning(name, found, "set checkpoint.async_save=true, and training goes on meanwhile", figure)
    return ok(name, found, figure)


def judge_abilities(name: str, found: Writing) -> list[Finding]:
    """A line for each thing that the file system cannot do; none where it can do all."""
    findings = []
    kind = found.file_system or "this file system"
    if not found.locks:
        advice = "mount it with locks (NFS: not nolock), or two runs may write into the same folder"
        findings.append(warning(name, f"{kind}: flock does not keep a second holder out", advice))
    if not found.renames:
        advice = "checkpoints would not be whole at once: use another file system for run_dir"
        findings.append(problem(name, f"{kind}: a file or folder cannot be renamed", advice))
    if found.file_system in _MEMORY_FILE_SYSTEMS:
        advice = "checkpoints are gone when the machine restarts: choose a folder on a disk"
        findings.append(warning(name, f"{kind} is memory", advice))
    return findings


def existing_parent(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.isdir(path))


def _look_at_local(key: str, folder: Path, *, config: RunConfig, checkpoint: int | None) -> list[Finding]:
    name = f"write {key}"
    try:
        found = measure_writing(folder)
    except OSError as error:
        return [problem(name, f"{folder}: {error.strerror or error}", hint(error))]
    background = config.checkpoint.async_save
    findings = [judge_speed(name, found.bytes_per_s, checkpoint=checkpoint, background=background)]
    if checkpoint is not None:
        kept = config.checkpoint.keep_last
        if every := config.checkpoint.keep_every:
            kept += config.num_steps // every
        findings.append(judge_room(f"room in {key}", found.free, checkpoint=checkpoint, kept=kept))
    return findings + judge_abilities(f"kind of {key}", found)


def _look_at_remote(folder: str, *, checkpoint: int | None, background: bool) -> Finding:
    """Puts, reads back and removes one object."""
    name, url = "write checkpoint.folder", f"{folder.rstrip('/')}/.clipx-doctor-{secrets.token_hex(4)}"
    content = os.urandom(_PIECE)
    try:
        began = time.perf_counter()
        write_file(url, content)
        written_s = time.perf_counter() - began
        whole = read_file(url) == content
        ask(url, "rm_file")
    except OSError as error:
        return problem(name, f"{folder}: {error}", hint(error))
    if not whole:
        return problem(name, f"{folder}: what was written is not what is read", "do not keep checkpoints there")
    return judge_speed(name, _PIECE / written_s, checkpoint=checkpoint, background=background)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    scratch = Path(tempfile.mkdtemp(dir=existing_parent(folder), prefix=".clipx-doctor-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_speed(path: Path) -> float:
    """Bytes per second of up to 96 MiB, synced at the end; at most some seconds."""
    content, written = os.urandom(_PIECE), 0
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(_PIECES):
            written += file.write(content)
            if time.perf_counter() - began > _MOST_S:
                break
        os.fsync(file.fileno())
    return written / (time.perf_counter() - began)


def _can_lock(path: Path) -> bool:
    """flock belongs to an open file, so a second opening by this process is a second holder."""
    with open(path, "w") as first, open(path, "w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        with suppress(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    return True


def _can_rename(scratch: Path) -> bool:
    (scratch / "a").mkdir()
    for name in ("new", "old"):
        (scratch / "a" / name).write_text(name)
    try:
        os.replace(scratch / "a" / "new", scratch / "a" / "old")
        os.rename(scratch / "a", scratch / "b")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return False
    return (scratch / "b" / "old").read_text() == "new"


def _file_system(folder: Path) -> str:
    """Type of the mount that holds `folder`, of several the one mounted deepest and last."""
    try:
        rows = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    real = folder.resolve()
    holding = [row for row in rows if len(row) > 2 and real.is_relative_to(row[1].replace("\\040", " "))]
    return max(enumerate(holding), key=lambda item: (len(item[1][1]), item[0]))[1][2] if holding else ""
