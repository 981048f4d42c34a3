"""Tells the shard reader what will be read: the order is known, so remote windows are fetched before their turn."""

from itertools import takewhile

from clipx.data.order import Place, Plan, Window
from clipx.data.shards import ShardReader

_MAX_SPAN = 128  # batches; the windows of a source with hardly a picture per batch are fetched in pieces


class LookAhead:
    """Announces the samples of coming batches, a window at a time, to be fetched in few requests.

    A window of a lane is used up over several batches. It is announced whole (what these slots need of it), some
    batches before its first use, and let go after its last.

    Args:
        plan: the order.
        shards: is told what its remote sources will be asked for.
        slots: of every global batch, those that this process reads.
        read_ahead_batches: batches before its first use at which a window is announced.
    """

    def __init__(self, plan: Plan, shards: ShardReader, *, slots: range, read_ahead_batches: int) -> None:
        self.slots = slots
        self._plan = plan
        self._shards = shards
        self._depth = read_ahead_batches
        self._span = read_ahead_batches + min(plan.batches_per_window(), _MAX_SPAN)
        self._next = self._seen_until = 0
        self._coming: dict[Window, list[tuple[int, Place]]] = {}  # in the order of first use

    def before(self, batch_index: int) -> None:
        """To be called before these slots of a global batch are read; batches come in their order, from any on."""
        if batch_index != self._next:
            self._coming, self._seen_until = {}, batch_index
        self._next = batch_index + 1
        self._shards.forget(batch_index)
        for coming in range(self._seen_until, batch_index + self._span + 1):
            addresses = self._plan.addresses(coming, slice(self.slots.start, self.slots.stop))
            for window, address in zip(addresses.windows(), addresses, strict=True):
                if window.source in self._shards.remote_sources:
                    self._coming.setdefault(window, []).append((coming, address.place))
            self._seen_until = coming + 1
        due = list(takewhile(lambda window: self._coming[window][0][0] <= batch_index + self._depth, self._coming))
        for window in due:
            uses = self._coming.pop(window)
            self._shards.expect([place for _, place in uses], until=uses[-1][0] + 1)
