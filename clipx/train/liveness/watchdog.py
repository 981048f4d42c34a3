"""Notices that a rank makes no progress, reports where every rank stands and who holds up the run, ends the process.

Whatever hangs a rank (a stopped or dead peer in a collective, a read that never returns, a device) hangs its main
thread, and a hung process is the one failure that no launcher restarts. So each rank has, beside its main thread:

- A thread that counts the seconds since the main thread last called `set_activity`. It ends the process, after printing
  a headline and the stacks and writing a reason to status.json.
- A thread that exchanges heartbeats with the other ranks. Only this one may wait for the store.
- For a thread that hangs and holds the GIL, when no Python runs: faulthandler's timer in C, which is reset as long as
  Python runs. It prints the stacks and ends the process; the headline and status.json then come from other ranks.
"""

import faulthandler
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, Self

from clipx.train.liveness.heartbeat import Activity, Heartbeat, HeartbeatExchange, describe, find_straggler
from clipx.train.liveness.stacks import STDERR, Stacks

_LOOK_EVERY_S = 1.0
_READINGS = 4  # of all heartbeats, one per look: between the first and the last, a rank that lives has published three
_NO_ANSWER_S = 8.0  # after which the store counts as hung
_REPORT_WITHIN_S = 10.0  # storage or a pipe that hangs may delay the report, but not the end
_LINGER_S = 4.0  # for the other ranks' reports: they learn of the stall within two looks, then lose this rank
_GIL_GRACE_S = 5.0  # the timer in C is reset at every look: it fires when Python has not looked for longer
_STARTUP_STEPS = 2  # the first step compiles and chooses kernels, and what its device did is read in the second


class _Position(NamedTuple):
    """Activity of the main thread and its limit; a new object for every call of `set_activity`."""

    activity: Activity
    step: int
    limit_s: float


class Age:
    """Counts the seconds for which a position has been observed.

    While the process is suspended, or its machine too busy to run it, nobody observes, and that time does not count.
    """

    def __init__(self, look_every_s: float) -> None:
        self._max_s = 2 * look_every_s
        self._position: object = None
        self._seconds = 0.0
        self._looked_at = 0.0

    def look(self, position: object, now: float) -> float:
        """The age of `position` in seconds at the monotonic time `now`; 0 if it is another object than the last."""
        if position is self._position:
            self._seconds += min(now - self._looked_at, self._max_s)
        else:
            self._position, self._seconds = position, 0.0
        self._looked_at = now
        return self._seconds


class Watchdog:
    """Watches the main thread of one rank; a context around everything from joining the other ranks to leaving them.

    Within it, `kill -RTMAX PID` makes a rank or a loader process print its stacks and go on. A rank that is stopped
    (SIGSTOP) for longer than its limit ends when it is continued: the others have ended by then.

    Args:
        stall_timeout_s: limit for a step and for waiting for its data; 0 means that nothing is watched.
        timeout_s: limit for everything else, and for the first steps of a start (the startup timeout).
        rank: this rank.
        run_dir: stacks are written to stacks/rank-00000.txt in it.
        heartbeats: the exchange with the other ranks.
        on_stall: called with the reason before the process ends, in a thread of its own; it may hang.
    """

    def __init__(
        self,
        *,
        stall_timeout_s: float,
        timeout_s: float,
        rank: int,
        run_dir: Path,
        heartbeats: HeartbeatExchange,
        on_stall: Callable[[str], None],
    ) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._startup_timeout_s = max(timeout_s, stall_timeout_s)
        self._rank = rank
        self._file = run_dir / "stacks" / f"rank-{rank:05d}.txt"
        self._heartbeats = heartbeats
        self._on_stall = on_stall
        self._num_steps = 0  # of this start, counted as they begin: with their data
        self._position = _Position("start", 0, self._startup_timeout_s)
        self._left = threading.Event()
        self._context = ExitStack()
        self._watching = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._exchanging = threading.Thread(target=self._exchange, name="heartbeats", daemon=True)
        # Each is written by one of the two threads and read by the other
        self._listening = False
        self._readings: list[list[Heartbeat]] = []
        self._stall: str | None = None
        self._stall_of_others: str | None = None

    def set_activity(self, activity: Activity, *, step: int) -> None:
        """Records that the main thread lives, what it begins, and the steps taken. Takes a microsecond.

        Call it between the parts of a long activity too, and with `start` again before the next phase, whose first
        steps may take long again.
        """
        if activity == "start":
            self._num_steps = 0
        elif activity == "data":
            self._num_steps += 1
        short = activity in ("data", "step") and self._num_steps > _STARTUP_STEPS
        self._position = _Position(activity, step, self._stall_timeout_s if short else self._startup_timeout_s)

    def __enter__(self) -> Self:
        self._stacks = self._context.enter_context(Stacks())
        if self._stall_timeout_s > 0:
            self._watching.start()
            self._exchanging.start()
            self._context.callback(self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def _stop(self) -> None:
        self._left.set()
        self._watching.join()  # if it is about to end the process, it may
        self._exchanging.join(_LOOK_EVERY_S)  # or it hangs with the store
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        """The thread that decides; it waits for nothing."""
        age = Age(_LOOK_EVERY_S)
        while not self._left.is_set():
            position = self._position
            seconds = age.look(position, time.monotonic())
            overdue_s = seconds - position.limit_s
            faulthandler.dump_traceback_later(max(0.0, -overdue_s) + _GIL_GRACE_S, exit=True, file=STDERR)
            self._listening = overdue_s >= 0
            stall = self._stall_of_others or (self._own_stall(overdue_s) if self._listening else None)
            if stall is not None:
                self._end(position, seconds, stall)
            self._left.wait(_LOOK_EVERY_S)

    def _own_stall(self, overdue_s: float) -> str | None:
        """Who holds up the run, or None until that is known."""
        readings = self._readings
        if len(readings) >= _READINGS:
            return find_straggler(readings[0], readings[-1])
        if overdue_s >= _NO_ANSWER_S:
            return "no sign of life from rank 0, or from the launcher's process that keeps the ranks' store"
        return None

    def _exchange(self) -> None:
        """The thread that may hang: it alone uses the store."""
        while not self._left.is_set():
            position = self._position
            try:
                self._heartbeats.publish(position.activity, position.step)
                if self._stall is not None:
                    self._heartbeats.publish_stall(self._stall)
                self._stall_of_others = self._heartbeats.read_stall()
                self._readings = [*self._readings, self._heartbeats.read()] if self._listening else []
            except RuntimeError:  # the store's server has gone; the other thread finds out what this means
                return
            self._left.wait(_LOOK_EVERY_S)

    def _end(self, position: _Position, seconds: float, stall: str) -> None:
        """Reports, and ends the process."""
        self._stall = stall
        faulthandler.dump_traceback_later(_REPORT_WITHIN_S + _LINGER_S + _GIL_GRACE_S, exit=True, file=STDERR)
        report = threading.Thread(target=self._report, args=(position, seconds, stall), daemon=True)
        report.start()
        report.join(_REPORT_WITHIN_S)
        if self._heartbeats.world_size > 1:
            time.sleep(_LINGER_S)
        for child in multiprocessing.active_children():
            child.kill()  # a loader process in a read that hangs would stay for ever
        os._exit(1)

    def _report(self, position: _Position, seconds: float, stall: str) -> None:
        own = Heartbeat(0, position.activity, position.step, socket.gethostname(), os.getpid())
        headline = (
            f"STALLED: rank {self._rank} ({own.host}, pid {own.pid}) has been {describe(own)} for {seconds:.0f} s, "
            f"and the limit is {position.limit_s:.0f} s; {stall}; stacks follow, and are in {self._file}\n"
        )
        _print_now(headline)
        stacks = self._stacks.collect()
        _print_now(stacks)
        self._on_stall(f"no progress for {seconds:.0f} s: {stall}")
        with suppress(OSError):  # they have been printed
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(headline + stacks)


def _print_now(text: str) -> None:
    """Past sys.stderr, which has a lock that a hung thread may hold; a full disk or a closed pipe loses it."""
    data = text.encode(errors="replace")
    with suppress(OSError):
        while data:
            data = data[os.write(STDERR, data) :]
