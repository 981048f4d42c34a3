"""Fetches what will be read soon in the background: few large range requests instead of one per sample.

`expect` queues the samples of one shuffle block for the threads of this process; each thread opens a shard, merges the
byte ranges of members that lie close together, and fetches them. `take` hands a sample's bytes over, waits for them if
they are on their way, and fetches them itself if no thread has begun. So the time that a reader waits is bounded by
that of one request with its retries, however long the queue is.

Memory: the bytes of a range are in memory from its arrival until all of its samples were taken or forgotten: about
(blocks of this process's lanes in use and announced) x (samples of a block) x (bytes of a sample), `buffered_bytes`.
"""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from clipx.data.sample_refs import SampleRef
from clipx.storage.files import RangeReader
from clipx.storage.tar import Member

# A request costs 10 to 50 ms in an object store and a connection carries 50 to 100 MB/s: what lies between two ranges
# is read too if that takes less time than another request.
_GAP = 1 << 20
_LONGEST = 16 << 20  # a longer range is cut between two members: connections share it, and it ends within the timeout
_IDLE_S = 10.0  # a thread without work ends: readers come and go, and none has to be closed

T = TypeVar("T")


class Span(NamedTuple):
    """Bytes of a file, from `start` to `stop`."""

    start: int
    stop: int


def merge_spans(spans: Sequence[Span], *, gap: int = _GAP, longest: int = _LONGEST) -> list[Span]:
    """The ranges to ask for so that each of `spans` (in any order, perhaps overlapping) lies in one, in their order.

    Up to `gap` bytes between two spans are read rather than left out. A merged range has at most `longest` bytes.
    """
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start - merged[-1].stop <= gap and span.stop - merged[-1].start <= longest:
            merged[-1] = Span(merged[-1].start, max(merged[-1].stop, span.stop))
        elif not merged or span.stop > merged[-1].stop:
            merged.append(span)
    return merged


def read_members(file: RangeReader, members: Sequence[Member]) -> list[bytes]:
    """The content of members, shorter if the file ends; neighbours in one read.

    Raises:
        OSError: from `file`.
    """
    spans = merge_spans([_span(member) for member in members])
    blocks = [file.read_at(span.start, span.stop - span.start) for span in spans]
    return [_cut(spans[nth], blocks[nth], m) for m, nth in zip(members, _containing(spans, members), strict=True)]


class ShardAccess(Protocol):
    """What the prefetcher asks of the shard reader."""

    def open(self, source: int, shard: int) -> RangeReader | None:
        """The shard if it is read over the network; None if it is local by now."""

    def members(self, ref: SampleRef) -> list[Member]:
        """Those members of a sample that are read."""


class _Task(Generic[T]):
    """A piece of work that is done once, by the first thread that claims it."""

    def __init__(self, action: Callable[[], T]) -> None:
        self._action: Callable[[], T] | None = action
        self._claimed = threading.Lock()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self.value: T | None = None

    def claim(self) -> bool:
        """Returns True to the first caller and False to all later ones.

        The first caller decides what becomes of the task:

            a thread of the pool    run():   claims it, and does the work
            the reader              wait():  claims it if no thread has begun, and does the work itself
                                             if a thread has begun: waits until it is done
            the reader              claim(): claims it and does nothing, so that no thread does the work either
        """
        return self._claimed.acquire(blocking=False)

    def run(self) -> None:
        """Does the work unless somebody has claimed it."""
        if self.claim():
            assert self._action is not None
            try:
                self.value = self._action()
            except BaseException as error:
                self._error = error
            self._action = None
            self._done.set()

    def wait(self) -> T:
        """The result, when the work is done.

        Raises:
            BaseException: what the work raised.
        """
        self.run()
        self._done.wait()
        if self._error is not None:
            raise self._error
        assert self.value is not None
        return self.value


@dataclass(eq=False)
class _Range:
    """One request."""

    span: Span
    task: _Task[bytes]
    num_samples: int = 0
    """Samples that still need its bytes."""


@dataclass(eq=False)
class _Sample:
    """An expected sample."""

    ref: SampleRef
    reads: int = 0
    """How often it is still to be read."""
    members: Sequence[tuple[_Range, Member]] = ()
    """Known when the shard is open."""


@dataclass(eq=False)
class _Group:
    """The samples of one shard that were expected together."""

    until: int
    samples: dict[int, _Sample] = field(default_factory=dict)
    """By sample_id."""
    opening: "_Task[list[_Range]]" = field(init=False)
    """Finds the ranges; none if the shard is local."""


class Prefetcher:
    """The expected samples of one process, fetched by `connections` threads; one thread may call the public methods."""

    def __init__(self, shards: ShardAccess, *, connections: int) -> None:
        self._shards = shards
        self._connections = connections
        self._groups: dict[int, _Group] = {}  # by sample_id
        self._live: set[_Group] = set()
        self._queue: deque[_Task[Any]] = deque()
        self._changed = threading.Condition()
        self._num_threads = self._num_idle = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were fetched and neither taken nor forgotten."""
        return sum(len(part.task.value or b"") for group in self._live for part in group.opening.value or ())

    def expect(self, refs: Sequence[SampleRef], *, until: int) -> None:
        """Queues samples of one or more shards; a sample that is expected already will be handed over once more."""
        new: dict[tuple[int, int], _Group] = {}
        for ref in refs:
            group = self._groups.get(ref.sample_id)
            if group is None:
                group = new.setdefault((ref.source, ref.shard), _Group(until))
                group.samples[ref.sample_id] = _Sample(ref)
                self._groups[ref.sample_id] = group
            group.samples[ref.sample_id].reads += 1
            group.until = max(group.until, until)
        for group in new.values():
            self._live.add(group)
            group.opening = _Task(partial(self._open, group))
            self._submit([group.opening])

    def take(self, ref: SampleRef) -> list[bytes] | None:
        """The content of the sample's members, shorter if the file ends; None if it is to be read directly.

        Raises:
            OSError: what fetching met.
            RunError: what opening the shard met.
        """
        group = self._groups.get(ref.sample_id)
        if group is None:
            return None
        sample = group.samples[ref.sample_id]
        try:
            if not group.opening.wait():
                return None
            return [_cut(part.span, part.task.wait(), member) for part, member in sample.members]
        finally:
            sample.reads -= 1
            if not sample.reads:
                self._free(sample, group)

    def forget(self, before: int) -> None:
        """Drops what was expected until an earlier batch than `before`."""
        for group in [group for group in self._live if group.until < before]:
            group.opening.claim()
            for sample in list(group.samples.values()):
                self._free(sample, group)

    def _free(self, sample: _Sample, group: _Group) -> None:
        """Drops a sample, and the bytes that no other sample needs."""
        del self._groups[sample.ref.sample_id], group.samples[sample.ref.sample_id]
        for part, _ in sample.members:
            part.num_samples -= 1
            if not part.num_samples:
                part.task.claim()
                part.task.value = None
        if not group.samples:
            self._live.remove(group)

    def _open(self, group: _Group) -> list[_Range]:
        """Opens the group's shard and queues its ranges."""
        samples = list(group.samples.values())  # the reader may forget some of them meanwhile
        if not samples:
            return []
        file = self._shards.open(samples[0].ref.source, samples[0].ref.shard)
        if file is None:
            return []
        wanted = [self._shards.members(sample.ref) for sample in samples]
        spans = merge_spans([_span(member) for members in wanted for member in members])
        ranges = [_Range(span, _Task(partial(file.read_at, span.start, span.stop - span.start))) for span in spans]
        for sample, members in zip(samples, wanted, strict=True):
            parts = [ranges[nth] for nth in _containing(spans, members)]
            for part in parts:
                part.num_samples += 1
            sample.members = list(zip(parts, members, strict=True))
        self._submit([part.task for part in ranges], first=True)
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
                threading.Thread(target=self._work, daemon=True, name="clipx-prefetch").start()

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


def _containing(spans: Sequence[Span], members: Sequence[Member]) -> list[int]:
    """Which of the merged spans holds each member."""
    starts = [span.start for span in spans]
    return [bisect_right(starts, member.offset) - 1 for member in members]


def _cut(span: Span, block: bytes, member: Member) -> bytes:
    """The member's part of the bytes of `span`; a copy, so that the block can be freed."""
    start = member.offset - span.start
    return block[start : start + member.size]
