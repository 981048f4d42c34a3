"""Notices that a rank makes no progress, says where every rank stands and who holds up the run, and ends the process.

What hangs a rank (a stopped or dead peer in a collective, a read that never returns, a device) hangs its main thread,
and a hung process is the one failure that no launcher restarts. One of these stands beside each rank's main thread:

- A thread of Python counts the seconds since the main thread last said where it is. It ends the process after
  a headline, the stacks, and a reason for status.json.
- A second one exchanges signs of life with the other ranks, and is alone in waiting for their store.
- For a thread that hangs with the GIL, where no Python runs: faulthandler's timer in C, wound up again while Python
  does run. It prints the stacks and ends the process; the headline and status.json are then up to the other ranks.
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

from clipx.train.liveness.heartbeat import LifeSigns, Sign, Stage, describe, find_culprit
from clipx.train.liveness.stacks import STDERR, Stacks

_LOOK_EVERY_S = 1.0
_READINGS = 4  # of all ranks' signs, one at a look: who lives has left three in between
_NO_ANSWER_S = 8.0  # after which the store counts as hung
_REPORT_WITHIN_S = 10.0  # storage or a pipe that hangs holds up the report, and not the end
_LINGER_S = 4.0  # for the other ranks' reports: they hear of the verdict in two looks, then lose this rank
_GIL_GRACE_S = 5.0  # the timer in C is wound up at every look: it comes when Python has not looked for longer
_PATIENT_STEPS = 2  # of a start: the first compiles and chooses kernels, and what its device did is read in the second


class _Place(NamedTuple):
    """Where the main thread is; a new object each time that it says so."""

    stage: Stage
    step: int
    limit_s: float


class Age:
    """Seconds that a place has been looked at.

    Only these count: while the process is suspended, or its machine too busy to run it, nothing is stalled.
    """

    def __init__(self, look_every_s: float) -> None:
        self._most_s = 2 * look_every_s
        self._place: object = None
        self._seconds = 0.0
        self._looked_at = 0.0

    def look(self, place: object, now: float) -> float:
        """The age of `place`, which starts anew with every other object.

        Args:
            place: compared by identity.
            now: of a monotonic clock, in seconds.
        """
        if place is self._place:
            self._seconds += min(now - self._looked_at, self._most_s)
        else:
            self._place, self._seconds = place, 0.0
        self._looked_at = now
        return self._seconds


class Watchdog:
    """One rank's; a context around all that it does between joining and leaving the others.

    Within, `kill -RTMAX PID` makes a rank or a loader process print its stacks and go on. A rank that is stopped for
    longer than its limit ends when it is continued: the others have ended by then.

    Args:
        stall_timeout_s: of a step, and of waiting for its data; 0: nothing is watched.
        timeout_s: of all else, and of the first steps of a start.
        rank: this one.
        run_dir: stacks go to stacks/rank-00000.txt in it.
        signs: from and to the other ranks.
        on_stall: takes the reason before the process ends; called in a thread of its own, and may hang.
    """

    def __init__(
        self,
        *,
        stall_timeout_s: float,
        timeout_s: float,
        rank: int,
        run_dir: Path,
        signs: LifeSigns,
        on_stall: Callable[[str], None],
    ) -> None:
        self._stall_s = stall_timeout_s
        self._patient_s = max(timeout_s, stall_timeout_s)
        self._rank = rank
        self._file = run_dir / "stacks" / f"rank-{rank:05d}.txt"
        self._signs = signs
        self._on_stall = on_stall
        self._num_steps = 0  # of this start, counted as they begin: with their data
        self._place = _Place("start", 0, self._patient_s)
        self._left = threading.Event()
        self._context = ExitStack()
        self._watching = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._exchanging = threading.Thread(target=self._exchange, name="life signs", daemon=True)
        # Each is written by one of the two and read by the other
        self._listening = False
        self._heard: list[list[Sign]] = []
        self._verdict: str | None = None
        self._verdict_of_others: str | None = None

    def enters(self, stage: Stage, *, step: int) -> None:
        """The main thread is alive and begins a stage; also between the parts of a long one. Costs a microsecond.

        Args:
            stage: `start` again before the next phase, whose first steps may take long again.
            step: optimizer steps taken.
        """
        if stage == "start":
            self._num_steps = 0
        elif stage == "data":
            self._num_steps += 1
        soon = stage in ("data", "step") and self._num_steps > _PATIENT_STEPS
        self._place = _Place(stage, step, self._stall_s if soon else self._patient_s)

    def __enter__(self) -> Self:
        self._stacks = self._context.enter_context(Stacks())
        if self._stall_s > 0:
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
            place = self._place
            seconds = age.look(place, time.monotonic())
            overdue_s = seconds - place.limit_s
            faulthandler.dump_traceback_later(max(0.0, -overdue_s) + _GIL_GRACE_S, exit=True, file=STDERR)
            self._listening = overdue_s >= 0
            verdict = self._verdict_of_others or (self._own_verdict(overdue_s) if self._listening else None)
            if verdict is not None:
                self._end(place, seconds, verdict)
            self._left.wait(_LOOK_EVERY_S)

    def _own_verdict(self, overdue_s: float) -> str | None:
        """Who holds up the run, or None while that is being found out."""
        heard = self._heard
        if len(heard) >= _READINGS:
            return find_culprit(heard[0], heard[-1])
        if overdue_s >= _NO_ANSWER_S:
            return "no sign of life from rank 0, or from the launcher's process that keeps the ranks' store"
        return None

    def _exchange(self) -> None:
        """The thread that may hang: it alone uses the store."""
        while not self._left.is_set():
            place = self._place
            try:
                self._signs.leave(place.stage, place.step)
                if self._verdict is not None:
                    self._signs.declare(self._verdict)
                self._verdict_of_others = self._signs.verdict()
                self._heard = [*self._heard, self._signs.read()] if self._listening else []
            except RuntimeError:  # its server has gone; what this means, the thread that decides will say
                return
            self._left.wait(_LOOK_EVERY_S)

    def _end(self, place: _Place, seconds: float, verdict: str) -> None:
        """Reports, and ends the process."""
        self._verdict = verdict
        faulthandler.dump_traceback_later(_REPORT_WITHIN_S + _LINGER_S + _GIL_GRACE_S, exit=True, file=STDERR)
        report = threading.Thread(target=self._report, args=(place, seconds, verdict), daemon=True)
        report.start()
        report.join(_REPORT_WITHIN_S)
        if self._signs.world_size > 1:
            time.sleep(_LINGER_S)
        for child in multiprocessing.active_children():
            child.kill()  # a loader process in a read that hangs would stay for ever
        os._exit(1)

    def _report(self, place: _Place, seconds: float, verdict: str) -> None:
        own = Sign(0, place.stage, place.step, socket.gethostname(), os.getpid())
        headline = (
            f"STALLED: rank {self._rank} ({own.host}, pid {own.pid}) has been {describe(own)} for {seconds:.0f} s, "
            f"and the limit is {place.limit_s:.0f} s; {verdict}; stacks follow, and are in {self._file}\n"
        )
        with open(STDERR, "w", closefd=False) as stderr:  # sys.stderr has a lock that a hung thread may hold
            print(headline, end="", file=stderr, flush=True)
            stacks = self._stacks.collect()
            print(stacks, file=stderr, flush=True)
        self._on_stall(f"no progress for {seconds:.0f} s: {verdict}")
        with suppress(OSError):  # they have been printed
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(headline + stacks)
