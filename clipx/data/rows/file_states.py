"""Which versions of the files that rows name are there: an embedding that is kept must not outlive its picture."""

import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import islice

from clipx.data.parallel import in_threads
from clipx.data.rows.row import Rows

_AT_ONCE = 1024  # by a thread: the answers may come over a network


def whole_identity(rows: Rows) -> list[object]:
    """Changes when the rows do, or a file of theirs; plain values that JSON keeps. No picture is read for it."""
    return [rows.identity(), _states_digest(rows.files())]


def _states_digest(paths: Iterable[str]) -> str:
    """32 hexadecimal digits that change when the size or time of a file does; one that is not there has neither."""
    digest, rest = blake2b(digest_size=16), iter(paths)
    for states in in_threads(_states, iter(lambda: list(islice(rest, _AT_ONCE)), [])):
        digest.update(states)
    return digest.hexdigest()


def _states(paths: Sequence[str]) -> bytes:
    return repr(list(map(file_state_or_none, paths))).encode()


def file_state_or_none(path: str) -> tuple[int, int] | None:
    """Size and time of a file; None for one that cannot be asked, which is said when it is read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
