"""A rank's share of the global batches: parts read by loader processes, joined without a copy.

`samples.py` reads a part; here parts are spread over processes, which write their images into the shared memory of
`buffers.py`, and joined into a `Batch`.
"""

import atexit
import itertools
import resource
import signal
import time
from collections.abc import Container, Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipx.config.checkpoint import StopSignal
from clipx.data.order import DataOrder
from clipx.data.samples import PartialBatch, PartReader, join_parts
from clipx.errors import ClipxError, RunError
from clipx.host import end_with_parent
from clipx.types import Batch

if TYPE_CHECKING:  # needed only with loader processes
    from clipx.data.buffers import ImageBuffers

_GRACE_S = 2.0  # of loader processes that are in the middle of a sample when they are no longer wanted
_ASKED_TO_STOP_BY = (signal.SIGINT, *(signal.Signals[name] for name in get_args(StopSignal)))
_LENT = 3  # buffers beside those being filled: the batch in training, the one before it, one on its way


class _Request(NamedTuple):
    """A part that a loader process is asked for."""

    batch_index: int
    part: int
    buffer: int | None
    """The buffer for its images; None means that they come back with the part."""


class _Reply(NamedTuple):
    """A part that a loader process has read."""

    request: _Request
    part: PartialBatch
    images_IHWC: Tensor | None
    """None if the request named a buffer."""


class PairStream:
    """A rank's share of the global batches, in their order, from any batch on.

    Args:
        slots: positions of this rank in every global batch (`rank_slots`).
        image_size: S, pixels of the square images.
        workers: loader processes, at most one for each slot; 0 loads in this process.
        prefetch_batches: batches that the loader processes hold ready.
        pin_memory: give images, and what else is large, in page-locked memory.
    """

    def __init__(
        self,
        reader: PartReader,
        *,
        slots: range,
        image_size: int,
        workers: int = 0,
        prefetch_batches: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self._reader = reader
        self._shape = (len(slots), image_size, image_size, 3)
        self._prefetch_batches = prefetch_batches
        self._pin_memory = pin_memory
        self._slots = slots
        self.workers = min(workers, len(slots))
        num_parts = max(1, self.workers)
        cuts = [len(slots) * part // num_parts for part in range(num_parts + 1)]
        self._rows = [slice(*ends) for ends in itertools.pairwise(cuts)]

    def batches(
        self, start: int = 0, stop: int | None = None, *, left_out: Container[int] = ()
    ) -> Generator[Batch, None, None]:
        """This rank's share of the global batches from `start` to before `stop`, or without end, except `left_out`.

        A generator: its `close()` ends the loader processes. Keeping many batches costs copies, nothing else.

        Raises:
            RunError: no readable sample within reach, failing storage, or a loader process that died.
        """
        indexes = itertools.filterfalse(
            left_out.__contains__, itertools.count(start) if stop is None else range(start, stop)
        )
        batches = self._load_in_workers(indexes) if self.workers else map(self.load, indexes)
        for batch in batches:
            yield batch.pin_memory() if self._pin_memory else batch
            del batch  # or its buffer would be lent until the next batch is there

    def load(self, batch_index: int) -> Batch:
        """This rank's share of one global batch, read in this process."""
        images_IHWC = torch.empty(self._shape, dtype=torch.uint8, pin_memory=self._pin_memory)
        return self._join([self._read(batch_index, 0, out=images_IHWC)], images_IHWC)

    def _read(self, batch_index: int, part: int, *, out: Tensor) -> PartialBatch:
        return self._reader.read(batch_index, self._slots[self._rows[part]], out=out)

    def _load_in_workers(self, indexes: Iterator[int]) -> Generator[Batch, None, None]:
        from clipx.data.buffers import ImageBuffers

        buffers = ImageBuffers(self._prefetch_batches + _LENT, self._shape, pin_memory=self._pin_memory)
        replies = self._replies(self._requests(indexes, buffers), buffers)
        try:
            while parts := list(itertools.islice(replies, self.workers)):
                yield self._assemble(parts, buffers)
        finally:
            replies.close()

    def _requests(self, indexes: Iterator[int], buffers: "ImageBuffers") -> Iterator[_Request]:
        """The parts of every batch; torch hands them to the processes in turn, so that each keeps its own lanes."""
        for batch_index in indexes:
            buffer = buffers.take()
            for part in range(self.workers):
                yield _Request(batch_index, part, buffer)

    def _assemble(self, replies: Sequence[_Reply], buffers: "ImageBuffers") -> Batch:
        buffer = replies[0].request.buffer
        if buffer is not None:
            images_IHWC = buffers.lend(buffer)
        else:  # the caller keeps so many batches that no buffer was free
            images_IHWC = torch.cat([reply.images_IHWC for reply in replies if reply.images_IHWC is not None])
        return self._join([reply.part for reply in replies], images_IHWC)

    def _join(self, parts: Sequence[PartialBatch], images_IHWC: Tensor) -> Batch:
        return join_parts(parts, images_IHWC, captions_per_image=self._reader.captions_per_image)

    def _replies(self, requests: Iterator[_Request], buffers: "ImageBuffers") -> Generator[_Reply, None, None]:
        """The replies of the loader processes, in the order of the requests."""
        loader = DataLoader(
            _WorkerDataset(self, buffers),
            batch_size=None,
            sampler=requests,  # gone through once
            num_workers=self.workers,
            prefetch_factor=self._prefetch_batches,
            multiprocessing_context="fork",  # the buffers are memory that a child inherits
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # torch draws a seed for its workers: not from the run's generator
        )
        items = iter(loader)
        stop = partial(_end_workers, items)
        atexit.register(stop)  # before multiprocessing's own handler, whose SIGTERM the workers ignore
        try:
            while (item := next(items, None)) is not None:
                if isinstance(item, ClipxError):
                    raise item
                yield item
        except Exception as error:
            # torch has no type for a worker that died, and one that dies while it hands over a batch breaks the
            # connection in one of several ways; a worker whose dataset raised is still alive
            if any(not worker.is_alive() for worker in items._workers):  # type: ignore[attr-defined]
                raise RunError(
                    f"a loader process died: {' '.join(str(error).split())}; if memory or /dev/shm ran out, lower "
                    "data.workers or data.prefetch_batches; then run the same command again"
                ) from error
            raise
        finally:
            atexit.unregister(stop)
            stop()


class _WorkerDataset(Dataset["_Reply | ClipxError"]):
    """Reads parts in a loader process.

    Errors for a person cross to the parent as values: torch would add a traceback to the message.
    """

    def __init__(self, stream: PairStream, buffers: "ImageBuffers") -> None:
        self._stream = stream
        self._buffers = buffers

    def __getitem__(self, request: _Request) -> "_Reply | ClipxError":
        rows = self._stream._rows[request.part]
        if request.buffer is None:
            out = torch.empty((rows.stop - rows.start, *self._stream._shape[1:]), dtype=torch.uint8)
        else:
            out = self._buffers.rows(request.buffer, rows)
        try:
            part = self._stream._read(request.batch_index, request.part, out=out)
        except ClipxError as error:
            return error
        return _Reply(request, part, out if request.buffer is None else None)


def _end_workers(items: Any) -> None:
    """Ends a loader's processes; those in the middle of a read, which may wait for a server for minutes, are killed.

    torch alone waits 5 s for each, and then sends the SIGTERM that they ignore. It has no public names for this. Fewer
    private ones would do with a thread that kills while `_shutdown_workers` waits, but none may start at exit; and a
    process that ends itself after a while does not if a decoder hangs and holds the interpreter's lock.
    """
    if not items._worker_pids_set:  # torch has ended them itself, after the last request
        return
    items._workers_done_event.set()
    for requests in items._index_queues:
        requests.put(None)  # torch's sign of the end; behind what a process has been asked for, which it drops
    stops_at = time.monotonic() + _GRACE_S
    for worker in items._workers:
        worker.join(max(0.0, stops_at - time.monotonic()))
    torch_signals: Any = torch.utils.data._utils.signal_handling
    torch_signals._remove_worker_pids(id(items))  # or it would report the killed as a failure
    items._worker_pids_set = False
    for worker in items._workers:
        worker.kill()
    items._shutdown_workers()


def _start_worker(_: int) -> None:
    """Ties the process to its parent, and ignores stop signals.

    A stop signal sent to the whole job must not cost the batches that the parent still wants; but when the parent is
    killed, this process ends too, even in the middle of a read that would last for minutes.
    """
    end_with_parent(signal.SIGKILL)
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # for the shards that it keeps open
    for number in _ASKED_TO_STOP_BY:
        signal.signal(number, signal.SIG_IGN)


def rank_slots(order: DataOrder, *, rank: int, world_size: int) -> range:
    """The positions of a rank in every global batch; the number of ranks divides the batch."""
    size = order.global_batch_size // world_size
    assert size * world_size == order.global_batch_size
    return range(rank * size, (rank + 1) * size)
