"""One run in a folder at a time: a second start waits for the first to end, and then says who is in its way.

The lock is the kernel's (POSIX record locks, which Lustre and NFS know too), so a process that dies leaves none, and
loader processes do not inherit it. A machine that dies leaves its locks with the server of the file system for as long
as that believes it alive.
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
_WAIT_S = 20.0  # what a killed job may need to be gone when its successor starts
_WAIT_FOR_OTHERS_S = 150.0  # the same for another machine, which may be dead: NFSv4 servers give it 90 s, Lustre's 100
_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Makes the run folder if need be, and keeps other processes out of it within the block.

    Raises:
        InputError: the folder cannot be used, or another process holds it for longer than 20 s, or on another machine
            than this 150 s.
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
    told = False
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                log.warning("%s cannot be locked (%s); see to it that one run at a time uses it", run_dir, error)
                return
        else:
            return
        holder = (run_dir / _NAME).read_text() or "another process"
        near = holder.endswith(f" on {socket.gethostname()}")
        if time.monotonic() - began >= (_WAIT_S if near else _WAIT_FOR_OTHERS_S):
            raise InputError(f"run_dir={run_dir} is in use by {holder}; stop that run or choose another run_dir")
        if not told:
            log.info("waiting for %s to leave %s", holder, run_dir)
            told = True
        time.sleep(0.5)
