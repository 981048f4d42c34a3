"""Tells the shard reader what will be read: the order is known, so remote samples are fetched before their turn."""

from itertools import takewhile

from clipx.data.order import DataOrder
from clipx.data.sample_refs import SampleRef, ShuffleBlock
from clipx.data.shards import ShardReader

_MAX_SPAN = 128  # batches; the blocks of a source with hardly an image per batch are fetched in pieces


class PrefetchSchedule:
    """Announces the samples of coming batches, a shuffle block at a time, to be fetched in few requests.

    A block of a lane is used up over several batches. What these slots need of it is announced together, some batches
    before the first use (`read_ahead_batches`), and forgotten after the last. The slots are those of every global batch
    that this process reads.
    """

    def __init__(self, order: DataOrder, shards: ShardReader, *, slots: range, read_ahead_batches: int) -> None:
        self.slots = slots
        self._order = order
        self._shards = shards
        self._depth = read_ahead_batches
        self._span = read_ahead_batches + min(order.batches_per_block(), _MAX_SPAN)
        self._next = self._seen_until = 0
        self._coming: dict[ShuffleBlock, list[tuple[int, SampleRef]]] = {}  # (batch, sample), by first use

    def announce(self, batch_index: int) -> None:
        """Announces what is due; call it before these slots of a batch are read. Batches are in order, from any on."""
        if batch_index != self._next:
            self._coming, self._seen_until = {}, batch_index
        self._next = batch_index + 1
        self._shards.forget(batch_index)
        for coming in range(self._seen_until, batch_index + self._span + 1):
            refs = self._order.sample_refs(coming, slice(self.slots.start, self.slots.stop))
            for block, ref in zip(refs.blocks(), refs, strict=True):
                if block.source in self._shards.remote_sources:
                    self._coming.setdefault(block, []).append((coming, ref))
            self._seen_until = coming + 1
        due = list(takewhile(lambda block: self._coming[block][0][0] <= batch_index + self._depth, self._coming))
        for block in due:
            uses = self._coming.pop(block)
            self._shards.expect([ref for _, ref in uses], until=uses[-1][0] + 1)
