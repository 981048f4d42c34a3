"""Faults that a process does to itself, before it runs the command line; clipx knows nothing of them.

The variable FAULTS holds a JSON list of [function of this module, its arguments]; `rank` among them picks one process.
Run as a script, or from a fork (`warm_start`).
"""

import errno
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipx.types import Batch

_HEAPS = 64  # more than malloc has: each try falls back to the next one
_BLOCK = 1 << 16  # less than a batch of the tiny run; smaller pieces stay, for the words at the end
_GATE_S = 600  # longer than any test takes


def apply() -> None:
    """The faults of the environment that are meant for this rank."""
    for name, options in json.loads(os.environ.pop("FAULTS", "[]")):
        rank = options.pop("rank", None)
        if rank is None or rank == int(os.environ.get("RANK", "0")):
            globals()[name](**options)


def die_at_start() -> None:
    """Never gets as far as the command."""
    os._exit(3)


def die_at_step(step: int) -> None:
    """Kills itself before step `step`."""
    _before_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL))


def replace_constant(module: str, name: str, value: Any) -> None:
    """Another value for a constant, where waiting for its own would be all that a test does."""
    setattr(importlib.import_module(module), name, value)


def hold_at_step(step: int, gate: str) -> None:
    """Before step `step` (from 1): says so by the file GATE.reached, and waits as long as the file `gate` is there."""
    _before_step(step, lambda: _stand_at(gate))


def hold_at_file_event(gate: str, *, part: str, nth: int = 1, after: str = "") -> None:
    """The same at a file event, which are counted as in `die_at_file_event`."""
    _at_file_event(lambda: _stand_at(gate), part=part, nth=nth, after=after)


def die_at_file_event(*, part: str, nth: int = 1, after: str = "") -> None:
    """Dies at the n-th time (from 1) that it opens, makes, renames or removes a path with `part` in it.

    It counts from the first such event of a path with `after` in it.
    """
    _at_file_event(lambda: os.kill(os.getpid(), signal.SIGKILL), part=part, nth=nth, after=after)


def fail_at_file_event(*, part: str, nth: int = 1) -> None:
    """At that time the operation fails as on a full disk."""

    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _at_file_event(fail, part=part, nth=nth, after="")


def limit_file_size(step: int, size: int, *, fatal: bool = False) -> None:
    """From step `step` on no file grows beyond `size` bytes: the write fails, or it kills where `fatal`."""

    def begin() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    _before_step(step, begin)


def limit(name: str, amount: int, *, step: int) -> None:
    """From step `step` on the soft limit RLIMIT_`name` is `amount`."""
    number = getattr(resource, f"RLIMIT_{name}")
    _before_step(step, lambda: resource.setrlimit(number, (amount, resource.getrlimit(number)[1])))


def exhaust_memory(step: int) -> None:
    """From step `step` on the kernel gives the process no more memory, and nothing is left of what it has.

    The limit alone may never be felt: a heap keeps what was freed, and those of threads have room to grow that was
    counted before.
    """
    taken: list[bytearray] = []

    def take_all() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1, resource.RLIM_INFINITY))
        for _ in range(_HEAPS):
            with suppress(MemoryError):
                while True:
                    taken.append(bytearray(_BLOCK))

    _each_step(lambda coming: take_all() if coming >= step else None)


def spoil_embeddings(first: int, last: int, *, factor: float = float("nan")) -> None:
    """Multiplies this rank's image embeddings of the global batches `first` to `last` by `factor`."""
    from clipx.models.clip import CLIP

    forward = CLIP.forward

    def disturbed(self: CLIP, batch: "Batch", **options: Any) -> Any:
        embeddings = forward(self, batch, **options)
        spoiled = first <= batch.index <= last
        return replace(embeddings, image_BD=embeddings.image_BD * factor) if spoiled else embeddings

    CLIP.forward = disturbed  # type: ignore[method-assign]


def slow_reads(part: str, seconds: float, *, after: int = 0) -> None:
    """Reads of local files with `part` in their address take so long, from the `after`-th on."""
    from clipx.storage.files import LocalFile

    read_at = LocalFile.read_at
    reads = 0

    def slow(self: LocalFile, offset: int, length: int) -> bytes:
        nonlocal reads
        if part in os.readlink(f"/proc/self/fd/{self._descriptor}"):
            reads += 1
            if reads > after:
                time.sleep(seconds)
        return read_at(self, offset, length)

    LocalFile.read_at = slow  # type: ignore[method-assign]


def _stand_at(gate: str) -> None:
    Path(f"{gate}.reached").touch()
    gives_up = time.monotonic() + _GATE_S
    while Path(gate).exists():
        if time.monotonic() > gives_up:  # the test that would open it was killed
            os._exit(4)
        time.sleep(0.005)


def _at_file_event(action: Callable[[], Any], *, part: str, nth: int, after: str) -> None:
    events = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
    left, counting = nth, False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left, counting
        if event not in events or left == 0:
            return
        path = str(arguments[0])
        counting = counting or after in path
        if counting and part in path:
            left -= 1
            if left == 0:
                action()

    sys.addaudithook(watch)


def _before_step(step: int, action: Callable[[], Any]) -> None:
    """Calls `action` once, before the first step from `step` on is computed."""
    done = False

    def act(coming: int) -> None:
        nonlocal done
        if not done and coming >= step:
            done = True
            action()

    _each_step(act)


def _each_step(action: Callable[[int], None]) -> None:
    """Calls `action` with the number of each step, from 1, before it is computed."""
    from clipx.train.step import Stepper

    call = Stepper.__call__

    def disturbed(self: Stepper, *arguments: Any, **options: Any) -> Any:
        action(options["step"] + 1)
        return call(self, *arguments, **options)

    Stepper.__call__ = disturbed  # type: ignore[method-assign]
