"""Writes shards.

Equal samples give equal bytes: members have no time, user or machine. A shard has its name only when it is complete.
"""

import io
import os
import secrets
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Writes a tar of samples, replacing an existing file, and returns their number; creates folders.

    A sample is a key and members by extension. A key that is in the shard already gets the suffix `-2`, `-3`, ...: two
    equal keys in a row would be read as one sample.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            count = _write(file, samples)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count


def _write(file: BinaryIO, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    used: dict[str, int] = {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        count = 0
        for key, members in samples:
            name = _unused(key, used)
            for extension, data in sorted(members.items()):
                if extension:
                    member = tarfile.TarInfo(f"{name}.{extension}")
                    member.size, member.mode = len(data), 0o444
                    tar.addfile(member, io.BytesIO(data))
            count += 1
    return count


def _unused(key: str, used: dict[str, int]) -> str:
    """`key`, or `key` with a number that makes it new."""
    name = key
    while name in used:
        used[key] += 1
        name = f"{key}-{used[key]}"
    used[name] = 1
    return name
