"""The folder that embeddings are made in: whose it is, who works in it, what is done.

Only a folder that was empty, or that was begun with the same request, is written to. `.clipx-embed` in it holds the
request, a lock, and for each shard that is done a report, written last: what has no report is computed again. With a
reduction it holds the full embeddings too, until they are reduced.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipx.errors import InputError, RunError
from clipx.storage.failures import hint
from clipx.storage.files import write_file
from clipx.storage.locks import claim
from clipx.use.embeddings import LEFT_OUT, MANIFEST, REDUCTION, WORK, Dtype, Manifest, read_manifest
from clipx.use.reading import Decode, LeftOut

_REQUEST, _LOCK = "request.json", "lock"
_NAMES = "|".join([r"[0-9]{5,}\.(image\.npy|text\.npy|parquet)", *map(re.escape, (LEFT_OUT, REDUCTION, MANIFEST))])
_DRAFT = r"\.[0-9a-f]{16}"  # after a name with a dot before it: of a write that was cut short
_OWN, _OWN_DRAFT = re.compile(_NAMES), re.compile(rf"\.({_NAMES}){_DRAFT}")
_OWN_BEFORE = re.compile(rf"{_LOCK}|\.{re.escape(_REQUEST)}{_DRAFT}")
"""What lies in the work folder before the request is there."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What decides the bytes of a folder."""

    fingerprint: str
    inputs: str
    num_inputs: int
    dtype: Dtype
    decode: Decode
    texts: bool
    batch_size: int
    rows_per_shard: int
    components: int | None


_CHANGES = {
    "fingerprint": "the model is another",
    "inputs": "the inputs are others, or have changed",
    "num_inputs": "the inputs are others, or have changed",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a shard."""

    rows: int
    """That have embeddings."""
    images: int
    texts: int
    left_out: tuple[LeftOut, ...]


@contextmanager
def claimed(folder: Path, request: Request) -> Iterator[Manifest | None]:
    """Keeps the folder for this process and its ranks within the block; gives its manifest if it is complete.

    Raises:
        InputError: the folder holds something else, was begun with another request or by a process that still works in
            it, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest = _state(folder, request)
        lock = None if manifest else claim(folder, folder / WORK / _LOCK)
        if lock is not None:
            manifest = _state(folder, request)  # another process may have finished while this one began
        if manifest is None:
            for name in filter(_OWN_DRAFT.fullmatch, os.listdir(folder)):
                (folder / name).unlink()
            write_file(str(folder / WORK / _REQUEST), json.dumps(asdict(request), indent=2).encode())
    except OSError as error:
        raise InputError(f"--out {folder} cannot be used: {error.strerror or error}; choose another folder") from error
    try:
        yield manifest
    finally:
        if lock is not None:
            lock.close()


def write_own(path: Path, content: bytes) -> None:
    """Writes a file of the folder, whole or not at all.

    Raises:
        RunError: the disk is full, or fails.
    """
    try:
        write_file(str(path), content)
    except OSError as error:
        problem = f"{path} cannot be written ({error.strerror or error})"
        raise RunError(f"{problem}; {hint(error)} and run the same command again, it goes on where it was") from error


def write_report(folder: Path, shard: int, report: Report) -> None:
    """Says that a shard's files are there."""
    write_own(_report_file(folder, shard), json.dumps(asdict(report)).encode())


def read_report(folder: Path, shard: int) -> Report | None:
    """What became of a shard; None if it is not done."""
    try:
        content = json.loads(_report_file(folder, shard).read_bytes())
        return Report(**content | {"left_out": tuple(LeftOut(*row) for row in content["left_out"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def complete(folder: Path, manifest: Manifest, reports: list[Report]) -> None:
    """Writes what was left out, then the manifest, which makes the folder whole, and removes what a restart needs."""
    lines = [json.dumps(row._asdict(), ensure_ascii=False) + "\n" for report in reports for row in report.left_out]
    write_own(folder / LEFT_OUT, "".join(lines).encode("utf-8", "backslashreplace"))
    write_own(folder / MANIFEST, (json.dumps(asdict(manifest), indent=2) + "\n").encode())
    shutil.rmtree(folder / WORK, ignore_errors=True)


def _report_file(folder: Path, shard: int) -> Path:
    return folder / WORK / f"{shard:05d}.json"


def _state(folder: Path, request: Request) -> Manifest | None:
    """The manifest of a complete folder with this request; None if it was begun, or is free.

    Raises:
        InputError: the folder is of another request or of somebody else.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        _require_equal(manifest.request, request, folder)
        shutil.rmtree(folder / WORK, ignore_errors=True)  # of a process that was killed while it removed it
        return manifest
    begun = _read_request(folder / WORK / _REQUEST)
    if begun is not None:
        _require_equal(begun, request, folder)
        names = set(os.listdir(folder)) - {WORK}
        others = {name for name in names if not (_OWN.fullmatch(name) or _OWN_DRAFT.fullmatch(name))}
    else:
        others = set(os.listdir(folder)) - {WORK}
        if (folder / WORK).is_dir():
            others |= {name for name in os.listdir(folder / WORK) if not _OWN_BEFORE.fullmatch(name)}
    if others:
        raise InputError(f"--out {folder} holds something else ({min(others)}); choose a new folder")
    return None


def _read_request(path: Path) -> dict[str, Any] | None:
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        content = json.loads(path.read_bytes())
        return content if isinstance(content, dict) else None
    return None


def _require_equal(before: dict[str, Any], request: Request, folder: Path) -> None:
    changes = [
        _CHANGES.get(name, f"{name} was {before.get(name)}, now {value}")
        for name, value in asdict(request).items()
        if before.get(name) != value
    ]
    if changes:
        listed = "; ".join(dict.fromkeys(changes))
        raise InputError(f"--out {folder} has embeddings of another request: {listed}; choose a new folder")
