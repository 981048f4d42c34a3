"""A lock on the run folder, for one run at a time: a second start waits for the first to end, then names its holder.

The lock is the kernel's (a POSIX record lock, which Lustre and NFS support too), so a process that dies leaves none,
and loader processes do not inherit it. If a machine dies, the server of the file system keeps its locks until it
believes the machine dead.
"""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipx.errors import InputError

log = logging.getLogger(__name__)

_NAME = ".lock"
_WAIT_S = 20.0  # a killed job may need this long to be gone when its successor starts
_WAIT_FOR_OTHERS_S = 150.0  # on other machines, which may be dead: NFSv4 keeps their locks for 90 s, Lustre for 100 s
_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Creates the run folder if it does not exist, and keeps other processes out of it within the block.

    Raises:
        InputError: the folder cannot be used, or a process holds it for longer than 20 s on this machine or 150 s on
            another one.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / _NAME).open("a+")
    except OSError as error:
        raise InputError(f"run_dir={run_dir} cannot be used ({error}); mend the storage or choose another") from error
    with file:
        _acquire(file.fileno(), run_dir)
        with suppress(OSError):  # a full disk: the lock holds without the name
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _acquire(descriptor: int, run_dir: Path) -> None:
    began = time.monotonic()
    logged = False
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in _HELD:
                log.warning("%s cannot be locked (%s); see to it that one run at a time uses it", run_dir, error)
                return
        holder = (run_dir / _NAME).read_text() or "another process"
        is_local = holder.endswith(f" on {socket.gethostname()}")
        if time.monotonic() - began >= (_WAIT_S if is_local else _WAIT_FOR_OTHERS_S):
            raise InputError(f"run_dir={run_dir} is in use by {holder}; stop that run or choose another run_dir")
        if not logged:
            log.info("waiting for %s to leave %s", holder, run_dir)
            logged = True
        time.sleep(0.5)
