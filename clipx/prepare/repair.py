"""The folder of repaired shards, in which only what was written from the same shards is replaced.

Beside each shard lies a mark, `.NAME.clipx-repair`, that tells from which shard it was written and its SHA-256. A file
without a mark, with another's, or changed since is somebody's.
"""

import hashlib
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipx.data.shard_writer import write_shard
from clipx.errors import InputError, RunError, some_names
from clipx.storage.files import is_local, write_file, write_new_file


@dataclass(frozen=True)
class RepairFolder:
    """A folder for shards that are written anew."""

    path: Path

    def require_free(self, shards: Sequence[str]) -> None:
        """Checks that the shards can be written here.

        Raises:
            InputError: they lie here themselves, have equal names, or would replace what is not proven to be theirs.
        """
        if any(Path(shard).resolve().parent == self.path.resolve() for shard in shards):
            raise InputError(
                f"--repair {self.path} is where the shards lie, and they stay as they are; choose another folder"
            )
        name, count = Counter(map(posixpath.basename, shards)).most_common(1)[0]
        if count > 1:
            raise InputError(
                f"--repair {self.path}: {count} of the shards are called {name}; repair one folder at a time"
            )
        if others := [posixpath.basename(shard) for shard in shards if not self._may_write(shard)]:
            raise InputError(
                f"--repair {self.path} holds {some_names(others)}, which were not written there from these shards, or "
                "changed since; choose an empty folder"
            )

    def write(self, shard: str, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
        """Writes the samples of `shard` under its name.

        Raises:
            RunError: the folder cannot be written, or another command writes a shard of that name there.
        """
        path, mark = self._path(shard), self._mark(shard)
        try:
            new = write_new_file(str(mark), _content(shard, ""))
            if (not new and self._origin(shard) is None) or not self._may_write(shard):
                raise RunError(
                    f"{path} is not replaced: {mark.name} says that it belongs to another shard; choose an empty folder"
                )
            write_shard(path, samples)
            write_file(str(mark), _content(shard, _digest(path)))
        except OSError as error:
            raise RunError(
                f"{path} cannot be written: {error.strerror or error}; make room or choose another"
            ) from error

    def _may_write(self, shard: str) -> bool:
        """Whether nothing lies under the shard's name, or what was written from the same shard."""
        path = self._path(shard)
        if not os.path.lexists(path):
            return True
        digest = self._origin(shard)
        return bool(digest) and not path.is_symlink() and path.is_file() and digest == _digest(path)

    def _origin(self, shard: str) -> str | None:
        """The SHA-256 of what was written from the shard, "" if it was only begun, None if another was its origin."""
        try:
            content = json.loads(self._mark(shard).read_bytes())
            return str(content["sha256"]) if content["origin"] == _identity(shard) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _path(self, shard: str) -> Path:
        return self.path / posixpath.basename(shard)

    def _mark(self, shard: str) -> Path:
        return self.path / f".{posixpath.basename(shard)}.clipx-repair"


def _content(shard: str, digest: str) -> bytes:
    return json.dumps({"origin": _identity(shard), "sha256": digest}).encode()


def _identity(shard: str) -> str:
    """Tells shards apart without their addresses, in which there may be tokens."""
    address = os.path.realpath(shard) if is_local(shard) else shard
    return hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
