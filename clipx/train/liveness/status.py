"""How a start of a run ends: the word in status.json, the exit code, and the reason for a person."""

import json
import os
from contextlib import suppress
from enum import Enum
from pathlib import Path

from clipx.errors import ClipxError, InputError, RunError
from clipx.printable import redacted, shown
from clipx.storage.folders import write_atomically


class Status(Enum):
    """How a start ended: a word for status.json and an exit code for schedulers.

    torchrun and accelerate launch turn 85 into 1, so launch files read status.json.
    """

    COMPLETE = ("complete", 0)
    AGAIN = ("again", 85)
    FAILED = ("failed", 1)

    @property
    def word(self) -> str:
        """The word in status.json."""
        return self.value[0]

    @property
    def exit_code(self) -> int:
        """The exit code of the process; for `again`, $CLIPX_EXIT_CODE_AGAIN replaces it if that is set.

        torchrun restarts whatever does not end with 0. A launch file that uses this sets the variable to 0 and reads
        status.json.
        """
        if self is Status.AGAIN:
            return int(os.environ.get("CLIPX_EXIT_CODE_AGAIN") or self.value[1])
        return self.value[1]


class LostContactError(RunError):
    """Another process ended in the middle of a collective: a consequence of its failure, never the cause."""


def write_status(run_dir: Path, status: Status, **more: object) -> None:
    """Replaces status.json: the word, and the fields in `more`."""
    write_atomically(run_dir / "status.json", json.dumps(redacted({"status": status.word, **more})))


def write_failure(run_dir: Path, error: Exception, *, step: int, rank: int) -> None:
    """Writes why a rank failed to status.json, if that has no better reason yet.

    Any rank may fail alone. Its reason replaces those of the ranks that failed because they lost contact with it.
    """
    path = run_dir / "status.json"
    with suppress(OSError):  # a full disk may be the very reason; the error itself goes on to the person
        if not path.exists() or (isinstance(error, ClipxError) and not isinstance(error, LostContactError)):
            exit_code = 2 if isinstance(error, InputError) else Status.FAILED.exit_code  # which torchrun turns into 1
            write_status(run_dir, Status.FAILED, step=step, reason=shown(f"rank {rank}: {error}"), exit_code=exit_code)


def explain(error: Exception) -> Exception:
    """A readable error in place of a library's error about something outside clipx; any other error as it is."""
    import torch  # not above: a failure before torch is imported is written without waiting for it

    reason = " ".join(str(error).split())[:200]
    if isinstance(error, RuntimeError) and "DataLoader worker" in reason:  # torch's SIGCHLD handler raises it anywhere
        return RunError(f"a loader process died ({reason}); often memory or /dev/shm is full: lower data.workers")
    if isinstance(error, torch.distributed.DistError) or "gloo/transport" in reason:  # gloo has no type
        return LostContactError(f"lost contact with another process, whose own message says why ({reason})")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in reason:
        return RunError(
            f"out of memory ({reason or 'MemoryError'}); lower micro_batch_size or leave it to auto, and where the "
            "host's memory is full data.workers"
        )
    return error
