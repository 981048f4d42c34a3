"""Locks of the kernel on open files (flock): they end with the process, whatever happens to it."""

import fcntl
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

from clipx.errors import InputError

log = logging.getLogger(__name__)


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


def claim(folder: Path, path: Path) -> IO[str]:
    """The open file at `path`, made with its folder, on which this process holds the lock: `folder` is its to write.

    Where the file system has no locks a warning says so.

    Raises:
        InputError: another process has it; the message names `folder` as --out.
    """
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            file = path.open("a+")
        except FileNotFoundError:  # another process has just finished
            continue
        try:
            is_ours = try_lock(file.fileno())
        except OSError as error:
            log.warning("%s cannot be locked (%s); see to it that one command at a time uses it", folder, error)
            is_ours = True
        if not is_ours:
            holder = path.read_text(errors="replace") or "another process"
            file.close()
            raise InputError(f"--out {folder} is being written by {holder}; wait for it or choose another folder")
        with suppress(OSError):
            if is_at(file.fileno(), path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file
        file.close()  # the file of a process that has finished since
