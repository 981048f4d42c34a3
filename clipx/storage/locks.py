"""Locks of the kernel on open files (flock): they end with the process, whatever happens to it."""

import fcntl
import os
from pathlib import Path


def try_lock(descriptor: int) -> bool:
    """Takes the lock of an open file or folder; False if another process has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: str | Path) -> bool:
    """Whether the open file or folder is still the one at `path`, and not removed or replaced before it was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
