"""The order of one source: its shards end to end, cut into lanes that are read side by side.

With N samples, L lanes and q = N // L samples in a lane's stretch:

- In epoch e the shards stand in the order of their hashes of (seed, e), end to end on a circle of N positions whose
  origin is moved by a hash of (seed, e). Lane l owns the positions [l q, (l + 1) q); the N - L q < L samples after the
  last lane are left out, others in each epoch because the origin moves.
- Within a stretch, consecutive windows of w offsets are permuted by hashes of (seed, e, l, window).
- A lane is an endless stream, one stretch per epoch: batches cross from one epoch into the next without a gap.

Nothing is remembered: the caches hold what can be computed again. Shape suffixes: B places asked for, S shards.
"""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from clipx import counter_random
from clipx.counter_random import Stream

_CACHED_OFFSETS = 1 << 24  # of window permutations, 4 bytes each
_OFFSETS_AT_ONCE = 1 << 20  # hashed together, some 40 bytes each
_MIN_HORIZON, _MAX_HORIZON = 100, 10_000


class Located(NamedTuple):
    """Samples of one source, int64 (B,) each."""

    epoch_B: np.ndarray
    window_B: np.ndarray
    """Ordinal of the window within the lane's stretch."""
    shard_B: np.ndarray
    index_B: np.ndarray
    """Place within the shard."""
    number_B: np.ndarray
    """Place in all shards of the source laid end to end in the index's order."""


class _EpochOrder(NamedTuple):
    """The shards of one epoch, end to end."""

    shard_S: np.ndarray
    start_S: np.ndarray
    origin: int


class Lanes:
    """What stands at a place of a lane.

    Args:
        counts_S: int64 (S,), samples of each shard, in the index's order.
        lanes: L, at most the number of samples.
        window: w.
        seed: of this source.
    """

    def __init__(self, counts_S: np.ndarray, *, lanes: int, window: int, seed: int) -> None:
        self.counts_S = counts_S
        self.num_samples = int(counts_S.sum())
        self.lanes = lanes
        self.window = window
        self.seed = seed
        self.stretch = self.num_samples // lanes
        self._first_number_S = np.cumsum(counts_S) - counts_S
        self._epochs: OrderedDict[int, _EpochOrder] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._num_cached_offsets = 0

    @property
    def horizon(self) -> int:
        """How many places ahead of a bad sample its replacement may lie.

        One stretch, but not so few that two bad samples end a run on a tiny set, nor so many that a source without one
        good sample is read for more than seconds.
        """
        return min(max(self.stretch, _MIN_HORIZON), _MAX_HORIZON)

    def locate(self, lane_B: np.ndarray, position_B: np.ndarray) -> Located:
        """The samples at places of the lanes' streams, int64 (B,) both."""
        epoch_B, offset_B = np.divmod(position_B, self.stretch)
        circle_B = lane_B * self.stretch + self._shuffled(epoch_B, lane_B, offset_B)
        shard_B, index_B = np.empty_like(circle_B), np.empty_like(circle_B)
        for epoch in np.unique(epoch_B):
            here = epoch_B == epoch
            order = self._epoch_order(int(epoch))
            line = (circle_B[here] + order.origin) % self.num_samples
            nth = np.searchsorted(order.start_S, line, side="right") - 1  # of equal starts the last: skips empty shards
            shard_B[here] = order.shard_S[nth]
            index_B[here] = line - order.start_S[nth]
        return Located(epoch_B, offset_B // self.window, shard_B, index_B, self._first_number_S[shard_B] + index_B)

    def _epoch_order(self, epoch: int) -> _EpochOrder:
        if epoch not in self._epochs:
            hash_S = counter_random.fold(
                counter_random.start(self.seed, Stream.SHARD_ORDER),
                epoch,
                np.arange(len(self.counts_S), dtype=np.int64),
            )
            shard_S = np.argsort(hash_S)  # no two are equal: for one seed and epoch the hash is a bijection
            count_S = self.counts_S[shard_S]
            origin = counter_random.key(self.seed, Stream.ROTATION, epoch) % self.num_samples
            self._epochs[epoch] = _EpochOrder(shard_S, np.cumsum(count_S) - count_S, origin)
            if len(self._epochs) > 2:  # a batch lies in one epoch or crosses into the next
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _shuffled(self, epoch_B: np.ndarray, lane_B: np.ndarray, offset_B: np.ndarray) -> np.ndarray:
        """The offsets after the permutation of their windows."""
        window_B, within_B = np.divmod(offset_B, self.window)
        keys, key_B = np.unique(np.stack([epoch_B, lane_B, window_B], axis=1), axis=0, return_inverse=True)
        permutations = self._permutations([(int(e), int(lane), int(w)) for e, lane, w in keys])
        chosen = (permutations[key][i] for key, i in zip(key_B.reshape(-1).tolist(), within_B.tolist(), strict=True))
        return window_B * self.window + np.fromiter(chosen, dtype=np.int64, count=len(offset_B))

    def _permutations(self, keys: list[tuple[int, int, int]]) -> list[np.ndarray]:
        """The permutation, int32, of each (epoch, lane, window)."""
        found = {key: self._windows[key] for key in keys if key in self._windows}
        for key in found:
            self._windows.move_to_end(key)
        missing: dict[int, list[tuple[int, int, int]]] = {}
        for key in keys:
            if key not in found:
                missing.setdefault(min(self.window, self.stretch - key[2] * self.window), []).append(key)
        for length, group in missing.items():
            rows = max(1, _OFFSETS_AT_ONCE // length)
            for first in range(0, len(group), rows):
                found.update(self._permute(group[first : first + rows], length))
        return [found[key] for key in keys]

    def _permute(self, keys: list[tuple[int, int, int]], length: int) -> dict[tuple[int, int, int], np.ndarray]:
        """Computes and caches the permutations of windows of one length."""
        columns = np.array(keys, dtype=np.int64).T
        bits = counter_random.fold(counter_random.start(self.seed, Stream.WINDOW), *columns)
        made = dict(zip(keys, counter_random.permutation(bits, length).astype(np.int32), strict=True))
        for key, permutation in made.items():
            self._windows[key] = permutation
            self._num_cached_offsets += length
        while self._num_cached_offsets > _CACHED_OFFSETS and len(self._windows) > 1:
            _, oldest = self._windows.popitem(last=False)
            self._num_cached_offsets -= len(oldest)
        return made
