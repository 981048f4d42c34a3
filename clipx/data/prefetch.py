"""Fetches what will be read soon in the background: few large range requests instead of one per sample.

`expect` queues the samples of one window for the threads of this process; each thread opens the window's shard, merges
the byte ranges of the members that lie close together, and fetches them. `take` hands a sample's bytes over, waits for
them where they are still on their way, and fetches them itself where no thread has begun. So the time that a reader
waits is bounded by that of one request with its retries, whatever else is queued.

Memory: the bytes of a range stand in memory from its arrival until all of its samples were taken or forgotten: about
(windows of this process's lanes in use and announced) x (samples of a window) x (bytes of a sample), `buffered_bytes`.
"""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from clipx.data.order import Place
from clipx.storage.files import RangeReader
from clipx.storage.tar import Member

# A request costs 10 to 50 ms in an object store and a connection carries 50 to 100 MB/s: what lies between two ranges
# is read through where that takes less time than another request.
_GAP = 1 << 20
_LONGEST = 16 << 20  # a longer range is cut between two members: connections share it, and it ends within the timeout
_IDLE_S = 10.0  # a thread without work ends: readers come and go, and none has to be closed

T = TypeVar("T")


class Span(NamedTuple):
    """Bytes of a file, from `start` to `stop`."""

    start: int
    stop: int


def merge_spans(spans: Sequence[Span], *, gap: int = _GAP, longest: int = _LONGEST) -> list[Span]:
    """The ranges to ask for so that each of `spans` lies in one, in their order.

    Args:
        spans: in any order; they may overlap.
        gap: bytes between two spans that are read rather than left out.
        longest: bytes of a merged range; a single span may have more.
    """
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start - merged[-1].stop <= gap and span.stop - merged[-1].start <= longest:
            merged[-1] = Span(merged[-1].start, max(merged[-1].stop, span.stop))
        elif not merged or span.stop > merged[-1].stop:
            merged.append(span)
    return merged


def read_members(file: RangeReader, members: Sequence[Member]) -> list[bytes]:
    """The content of members, shorter where the file ends; neighbours in one read.

    Raises:
        OSError: from `file`.
    """
    spans = merge_spans([_span(member) for member in members])
    blocks = [file.read_at(span.start, span.stop - span.start) for span in spans]
    return [_cut(spans[nth], blocks[nth], m) for m, nth in zip(members, _owners(spans, members), strict=True)]


class ShardAccess(Protocol):
    """What is asked of the shard reader."""

    def open(self, source: int, shard: int) -> RangeReader | None:
        """The shard where it is read over the network; None where it is local by now."""

    def members(self, place: Place) -> list[Member]:
        """Those members of a sample that are read."""


class _Task(Generic[T]):
    """A piece of work that is done once, by whoever comes first."""

    def __init__(self, action: Callable[[], T]) -> None:
        self._action: Callable[[], T] | None = action
        self._claim = threading.Lock()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self.value: T | None = None

    def run(self) -> None:
        if self.claim():
            assert self._action is not None
            try:
                self.value = self._action()
            except BaseException as error:
                self._error = error
            self._action = None
            self._done.set()

    def claim(self) -> bool:
        """Whether nobody had begun; the caller now has, or never will and nobody else either."""
        return self._claim.acquire(blocking=False)

    def wait(self) -> None:
        """Returns when it is done.

        Raises:
            BaseException: what it raised.
        """
        self.run()
        self._done.wait()
        if self._error is not None:
            raise self._error


@dataclass(eq=False)
class _Range:
    """One request."""

    span: Span
    task: _Task[bytes]
    num_samples: int = 0
    """Samples that still need its bytes."""


@dataclass(eq=False)
class _Window:
    """Expected samples of one shard."""

    until: int
    places: dict[Place, int]
    """How often each is still to be read."""
    opening: "_Task[list[_Range]]" = field(init=False)
    """Finds out the ranges; empty where the shard is local."""
    samples: dict[Place, list[tuple[_Range, Member]]] = field(default_factory=dict)


class ReadAhead:
    """The expected samples of one process; all methods but the threads' own are for one thread.

    Args:
        shards: opens them.
        connections: threads.
    """

    def __init__(self, shards: ShardAccess, *, connections: int) -> None:
        self._shards = shards
        self._connections = connections
        self._windows: dict[Place, _Window] = {}
        self._live: set[_Window] = set()
        self._queue: deque[_Task[Any]] = deque()
        self._changed = threading.Condition()
        self._num_threads = self._num_idle = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were fetched and neither taken nor forgotten."""
        return sum(len(owner.task.value or b"") for window in self._live for owner in window.opening.value or ())

    def expect(self, places: Sequence[Place], *, until: int) -> None:
        """Queues samples of one or more shards; those that are expected already will be handed over once more."""
        by_shard: dict[tuple[int, int], _Window] = {}
        for place in places:
            window = self._windows.get(place)
            if window is None:
                window = by_shard.setdefault((place.source, place.shard), _Window(until, {}))
                self._windows[place] = window
            window.places[place] = window.places.get(place, 0) + 1
            window.until = max(window.until, until)
        for window in by_shard.values():
            self._live.add(window)
            window.opening = _Task(partial(self._open, window))
            self._submit([window.opening])

    def take(self, place: Place) -> list[bytes] | None:
        """The content of the sample's members, shorter where the file ends; None when it is to be read directly.

        Raises:
            OSError: what fetching met.
            RunError: what opening the shard met.
        """
        window = self._windows.get(place)
        if window is None:
            return None
        try:
            window.opening.wait()
            if not window.opening.value:
                return None
            return [_content(owner, member) for owner, member in window.samples[place]]
        finally:
            self._release(place, window)

    def forget(self, before: int) -> None:
        """Drops what was expected until an earlier batch than `before`."""
        for window in [window for window in self._live if window.until < before]:
            window.opening.claim()
            for place in list(window.places):
                window.places[place] = 1
                self._release(place, window)

    def _release(self, place: Place, window: _Window) -> None:
        """Counts one reading of a sample; frees what no other needs."""
        window.places[place] -= 1
        if window.places[place]:
            return
        del self._windows[place], window.places[place]
        for owner, _ in window.samples.pop(place, ()):
            owner.num_samples -= 1
            if not owner.num_samples:
                owner.task.claim()
                owner.task.value = None
        if not window.places:
            self._live.remove(window)

    def _open(self, window: _Window) -> list[_Range]:
        """Opens the window's shard and queues its ranges."""
        places = list(window.places)  # the reader may forget some of them meanwhile
        if not places:
            return []
        file = self._shards.open(places[0].source, places[0].shard)
        if file is None:
            return []
        members = {place: self._shards.members(place) for place in places}
        spans = merge_spans([_span(member) for found in members.values() for member in found])
        ranges = [_Range(span, _Task(partial(file.read_at, span.start, span.stop - span.start))) for span in spans]
        for place, found in members.items():
            owners = [ranges[nth] for nth in _owners(spans, found)]
            for owner in owners:
                owner.num_samples += 1
            window.samples[place] = list(zip(owners, found, strict=True))
        self._submit([owner.task for owner in ranges], first=True)
        return ranges

    def _submit(self, tasks: Sequence[_Task[Any]], *, first: bool = False) -> None:
        with self._changed:
            if first:
                self._queue.extendleft(reversed(tasks))
            else:
                self._queue.extend(tasks)
            self._changed.notify(len(tasks))
            for _ in range(min(len(self._queue) - self._num_idle, self._connections - self._num_threads)):
                self._num_threads += 1
                threading.Thread(target=self._work, daemon=True, name="clipx-read-ahead").start()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            task.run()

    def _next(self) -> "_Task[Any] | None":
        with self._changed:
            self._num_idle += 1
            self._changed.wait_for(lambda: self._queue, timeout=_IDLE_S)
            self._num_idle -= 1
            if self._queue:
                return self._queue.popleft()
            self._num_threads -= 1
            return None


def _span(member: Member) -> Span:
    return Span(member.offset, member.offset + member.size)


def _owners(spans: Sequence[Span], members: Sequence[Member]) -> list[int]:
    """Which of the merged spans holds each member."""
    starts = [span.start for span in spans]
    return [bisect_right(starts, member.offset) - 1 for member in members]


def _cut(span: Span, block: bytes, member: Member) -> bytes:
    """The member's part of the bytes of `span`; a copy, so that the block can be freed."""
    start = member.offset - span.start
    return block[start : start + member.size]


def _content(owner: _Range, member: Member) -> bytes:
    owner.task.wait()
    assert owner.task.value is not None
    return _cut(owner.span, owner.task.value, member)
