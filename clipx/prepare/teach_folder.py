"""The folder in which teachers' embeddings are made: whose it is, who works in it, which shards are done.

Only a folder that was empty, or that was begun with the same request, is written to. `.clipx-teach` in it holds the
request, a lock, and for each shard that is done a report, written last: what has no report is taught again.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipx.config.paths import expand_home
from clipx.data.teachers.description import (
    DESCRIPTION,
    LEFT_OUT,
    WORK,
    Description,
    Reading,
    TaughtShard,
    Teacher,
    read_description,
    shard_file,
)
from clipx.errors import InputError, RunError
from clipx.storage.failures import hint
from clipx.storage.files import is_local, write_file
from clipx.storage.locks import claim

_REQUEST, _LOCK = "request.json", "lock"
# NFS may take the folder for absent for 60 s, if this machine asked for it too early (acdirmax, nfs(5)).
_SEEN_WITHIN_S = 90.0


@dataclass(frozen=True, kw_only=True)
class WantedShard:
    """A shard that is to be taught."""

    name: str
    reading: int
    samples: int
    filter: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """What decides the bytes of a store."""

    views: int
    seed: int
    decode: str
    precision: str
    batch_size: int
    teachers: tuple[Teacher, ...]
    readings: tuple[Reading, ...]
    shards: tuple[WantedShard, ...]

    def record(self) -> dict[str, Any]:
        """It as JSON has it; where a model lies does not count."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for teacher in record["teachers"]:
            del teacher["model"]
        return record


_CHANGES = {
    "teachers": "the teachers are others",
    "readings": "samples are read or augmented otherwise",
    "shards": "the shards are others",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a shard."""

    bytes: int
    """Of the shard."""
    taught: int
    texts: int
    left_out: tuple[tuple[str, str], ...]
    """Key and reason of the samples without embeddings."""


class StoreFolder:
    """A folder that becomes a store.

    Args:
        out: its address.

    Raises:
        InputError: it is remote.
    """

    def __init__(self, out: str) -> None:
        if not is_local(out):
            raise InputError(
                f"--out {out}: embeddings are read from a local disk; write them there, and copy the folder"
            )
        self.path = Path(expand_home(out))

    @contextmanager
    def claimed(self, request: Request) -> Iterator[Description | None]:
        """Keeps the folder for this process and its ranks within the block; gives its description if it is complete.

        Raises:
            InputError: the folder holds something else, was begun with another request or by a process that still
                works in it, or cannot be written.
        """
        lock = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            complete = self._state(request)
            if complete is None:
                lock = claim(self.path, self.path / WORK / _LOCK)
                complete = self._state(request)  # another process may have finished while this one began
            if complete is None:
                self._remove_drafts()
                write_file(str(self.path / WORK / _REQUEST), json.dumps(request.record()).encode())
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"--out {self.path} cannot be used: {reason}; choose another folder") from error
        try:
            yield complete
        finally:
            if lock is not None:
                lock.close()

    def mark(self) -> str:
        """Writes a file with a new name, by which other ranks know the folder; the next claim removes it.

        Raises:
            RunError: the disk is full, or fails.
        """
        name = f".seen-{secrets.token_hex(8)}"
        with _told(self.path / WORK / name):
            write_file(str(self.path / WORK / name), b"")
        return name

    def require_mark(self, name: str) -> None:
        """Raises RunError if this rank does not see the file that another one wrote."""
        ends_at = time.monotonic() + _SEEN_WITHIN_S
        while not os.path.exists(self.path / WORK / name):
            if time.monotonic() > ends_at:
                raise RunError(f"{self.path} is not the same folder for all ranks; name one that all machines see")
            time.sleep(1)

    def report(self, shard: int) -> Report | None:
        """What became of a shard; None if it is not done."""
        try:
            content = json.loads(self._report_file(shard).read_bytes())
            report = Report(**content | {"left_out": tuple(map(tuple, content["left_out"]))})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        return report if shard_file(self.path, shard).is_file() else None

    def write(self, shard: int, parts: Sequence[bytes | memoryview], report: Report) -> None:
        """Writes a shard's embeddings and, last of all, its report.

        Raises:
            RunError: the disk is full, or fails.
        """
        path = shard_file(self.path, shard)
        draft = path.with_name(f".{path.name}.new")
        with _told(path):
            path.parent.mkdir(exist_ok=True)
            with open(draft, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        with _told(self._report_file(shard)):
            write_file(str(self._report_file(shard)), json.dumps(asdict(report)).encode())

    def complete(self, request: Request, reports: Sequence[Report]) -> Description:
        """Writes what was left out, then the description, which makes the folder a store, and removes the rest."""
        shards = [
            TaughtShard(**asdict(shard), bytes=report.bytes, taught=report.taught, texts=report.texts)
            for shard, report in zip(request.shards, reports, strict=True)
        ]
        values = {name: getattr(request, name) for name in ("views", "seed", "decode", "precision", "batch_size")}
        description = Description(**values, teachers=request.teachers, readings=request.readings, shards=tuple(shards))
        lines = [
            json.dumps({"shard": shard.name, "key": key, "reason": reason}, ensure_ascii=False) + "\n"
            for shard, report in zip(request.shards, reports, strict=True)
            for key, reason in report.left_out
        ]
        with _told(self.path / LEFT_OUT):
            write_file(str(self.path / LEFT_OUT), "".join(lines).encode("utf-8", "backslashreplace"))
            write_file(str(self.path / DESCRIPTION), description.encoded())
        shutil.rmtree(self.path / WORK, ignore_errors=True)
        return description

    def _report_file(self, shard: int) -> Path:
        return self.path / WORK / f"{shard:05d}.json"

    def _remove_drafts(self) -> None:
        """Removes what writes left that were cut short."""
        for folder in (self.path, self.path / WORK, self.path / "shards"):
            for draft in folder.glob(".*") if folder.is_dir() else ():
                if draft.is_file():
                    draft.unlink()

    def _state(self, request: Request) -> Description | None:
        """The description of a complete folder with this request; None if it was begun, or is free.

        Raises:
            InputError: the folder is of another request or of somebody else.
        """
        if (self.path / DESCRIPTION).is_file():
            description = read_description(str(self.path))
            self._require_equal(_request_of(description).record(), request)
            shutil.rmtree(self.path / WORK, ignore_errors=True)  # of a process that was killed while it removed it
            return description
        begun = None
        with suppress(FileNotFoundError, NotADirectoryError, ValueError):
            begun = json.loads((self.path / WORK / _REQUEST).read_bytes())
        if isinstance(begun, dict):
            self._require_equal(begun, request)
            return None
        if others := set(os.listdir(self.path)) - {WORK}:
            raise InputError(f"--out {self.path} holds something else ({min(others)}); choose a new folder")
        return None

    def _require_equal(self, before: dict[str, Any], request: Request) -> None:
        changes = [
            _CHANGES.get(name, f"{name} was {before.get(name)}, now {value}")
            for name, value in request.record().items()
            if before.get(name) != value
        ]
        if changes:
            raise InputError(
                f"--out {self.path} was begun with another request: {'; '.join(changes)}; choose a new folder"
            )


def _request_of(description: Description) -> Request:
    shards = [
        WantedShard(name=shard.name, reading=shard.reading, samples=shard.samples, filter=shard.filter)
        for shard in description.shards
    ]
    values = {name: getattr(description, name) for name in ("views", "seed", "decode", "precision", "batch_size")}
    return Request(**values, teachers=description.teachers, readings=description.readings, shards=tuple(shards))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Says of a failure of the disk what was written."""
    try:
        yield
    except OSError as error:
        problem = f"{path} cannot be written ({error.strerror or error})"
        raise RunError(f"{problem}; {hint(error)} and run the same command again, it goes on where it was") from error
