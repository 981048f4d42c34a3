"""The output of a command as a stream of bytes: `pipe:COMMAND`, webdataset's notation for a shard."""

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO

_CHUNK = 1 << 20
_STDERR_TAIL = 4096


def stream(command: str, timeout_s: float) -> Iterator[bytes]:
    """What a command writes to its standard output, each chunk within the timeout.

    It runs in a shell and a process group of its own, which is killed when it hangs or is no longer wanted.

    Raises:
        OSError: when it ends with an error, writes nothing, or hangs; with its last line on standard error.
    """
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        assert process.stdout is not None
        num_bytes = 0
        try:
            for chunk in _chunks(process.stdout, timeout_s):
                num_bytes += len(chunk)
                yield chunk
            code = process.wait(timeout_s)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise OSError(f"the command wrote nothing for {timeout_s:g} s{_last_line(stderr)}") from None
        finally:
            _end(process)
        if code:
            raise OSError(f"the command ended with code {code}{_last_line(stderr)}")
        if not num_bytes:
            raise OSError(f"the command wrote nothing to its standard output{_last_line(stderr)}")


def _chunks(stdout: IO[bytes], timeout_s: float) -> Iterator[bytes]:
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout_s):
                raise TimeoutError
            if not (chunk := os.read(stdout.fileno(), _CHUNK)):
                return
            yield chunk


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills what is left of the process group: the shell may be gone while its children still run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _last_line(stderr: IO[bytes]) -> str:
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _STDERR_TAIL))
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1].strip()}" if lines else ""
