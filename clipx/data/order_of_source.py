"""The order of one source: its shards end to end, cut into lanes that are read side by side.

With N samples and L lanes, a lane has q = N // L samples in each epoch (`lane_length`):

- In epoch e the shards stand in the order of their hashes of (seed, e), end to end on a circle of N samples whose
  origin is moved by a hash of (seed, e). Lane l owns the samples [l q, (l + 1) q); the N - L q < L samples after the
  last lane are left out, others in each epoch because the origin moves.
- A lane's q samples are cut into shuffle blocks of w, and each block is permuted by hashes of (seed, e, l, block).
- A lane is an endless stream of positions, q in each epoch: batches cross from one epoch into the next without a gap.

Nothing is remembered: the caches hold what can be computed again. Shape suffixes: B positions asked for, S shards.
"""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from clipx import counter_random
from clipx.counter_random import Stream
from clipx.data.sample_refs import SampleRefs

_CACHED_OFFSETS = 1 << 24  # of all cached permutations, 4 bytes each
_OFFSETS_AT_ONCE = 1 << 20  # hashed together, some 40 bytes each
_MIN_REPLACEMENT_DISTANCE, _MAX_REPLACEMENT_DISTANCE = 100, 10_000


class _EpochOrder(NamedTuple):
    """The shards of one epoch, end to end."""

    shard_S: np.ndarray
    start_S: np.ndarray
    origin: int


class SourceOrder:
    """The samples at the positions of a source's lanes.

    Args:
        counts_S: int64 (S,), samples of each shard, in the index's order.
        lanes: L, at most the number of samples.
        window: w, samples of a shuffle block.
        seed: of this source.
        number: of this source, in the config's order.
        first_id: sample_id of the first sample of the first shard.
    """

    def __init__(
        self, counts_S: np.ndarray, *, lanes: int, window: int, seed: int, number: int = 0, first_id: int = 0
    ) -> None:
        self.counts_S = counts_S
        self.num_samples = int(counts_S.sum())
        self.lanes = lanes
        self.window = window
        self.seed = seed
        self.lane_length = self.num_samples // lanes
        self._number = number
        self._first_id_S = first_id + np.cumsum(counts_S) - counts_S
        self._epochs: OrderedDict[int, _EpochOrder] = OrderedDict()
        self._permutations: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._num_cached_offsets = 0

    @property
    def max_replacement_distance(self) -> int:
        """How many positions after a bad sample its replacement may lie.

        The length of a lane, but at least 100, so that two bad samples do not end a run on a tiny set, and at most
        10,000, so that a source without one good sample is read for seconds only.
        """
        return min(max(self.lane_length, _MIN_REPLACEMENT_DISTANCE), _MAX_REPLACEMENT_DISTANCE)

    def locate(self, lane_B: np.ndarray, position_B: np.ndarray) -> SampleRefs:
        """The samples at positions of the lanes, int64 (B,) both."""
        epoch_B, offset_B = np.divmod(position_B, self.lane_length)
        circle_B = lane_B * self.lane_length + self._shuffled(epoch_B, lane_B, offset_B)
        shard_B, index_B = np.empty_like(circle_B), np.empty_like(circle_B)
        for epoch in np.unique(epoch_B):
            here = epoch_B == epoch
            order = self._epoch_order(int(epoch))
            line = (circle_B[here] + order.origin) % self.num_samples
            nth = np.searchsorted(order.start_S, line, side="right") - 1  # of equal starts the last: skips empty shards
            shard_B[here] = order.shard_S[nth]
            index_B[here] = line - order.start_S[nth]
        return SampleRefs(
            source_B=np.full_like(lane_B, self._number),
            lane_B=lane_B,
            epoch_B=epoch_B,
            block_B=offset_B // self.window,
            shard_B=shard_B,
            index_B=index_B,
            sample_id_B=self._first_id_S[shard_B] + index_B,
        )

    def _epoch_order(self, epoch: int) -> _EpochOrder:
        if epoch not in self._epochs:
            bits = counter_random.start(self.seed, Stream.SHARD_ORDER)
            hash_S = counter_random.fold(bits, epoch, np.arange(len(self.counts_S), dtype=np.int64))
            shard_S = np.argsort(hash_S)  # no two are equal: for one seed and epoch the hash is a bijection
            count_S = self.counts_S[shard_S]
            origin = counter_random.key(self.seed, Stream.ROTATION, epoch) % self.num_samples
            self._epochs[epoch] = _EpochOrder(shard_S, np.cumsum(count_S) - count_S, origin)
            if len(self._epochs) > 2:  # a batch lies in one epoch or crosses into the next
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _shuffled(self, epoch_B: np.ndarray, lane_B: np.ndarray, offset_B: np.ndarray) -> np.ndarray:
        """The offsets in the lane after the permutation of their blocks."""
        block_B, within_B = np.divmod(offset_B, self.window)
        keys, key_B = np.unique(np.stack([epoch_B, lane_B, block_B], axis=1), axis=0, return_inverse=True)
        permutations = self._permutations_of([(int(e), int(lane), int(b)) for e, lane, b in keys])
        chosen = (permutations[key][i] for key, i in zip(key_B.reshape(-1).tolist(), within_B.tolist(), strict=True))
        return block_B * self.window + np.fromiter(chosen, dtype=np.int64, count=len(offset_B))

    def _permutations_of(self, keys: list[tuple[int, int, int]]) -> list[np.ndarray]:
        """The permutation, int32, of each block (epoch, lane, number)."""
        result = {key: self._permutations[key] for key in keys if key in self._permutations}
        for key in result:
            self._permutations.move_to_end(key)
        missing: dict[int, list[tuple[int, int, int]]] = {}
        for key in keys:
            if key not in result:
                missing.setdefault(min(self.window, self.lane_length - key[2] * self.window), []).append(key)
        for length, group in missing.items():
            rows = max(1, _OFFSETS_AT_ONCE // length)
            for first in range(0, len(group), rows):
                result.update(self._permute(group[first : first + rows], length))
        return [result[key] for key in keys]

    def _permute(self, keys: list[tuple[int, int, int]], length: int) -> dict[tuple[int, int, int], np.ndarray]:
        """Computes and caches the permutations of blocks of one length."""
        columns = np.array(keys, dtype=np.int64).T
        bits = counter_random.fold(counter_random.start(self.seed, Stream.WINDOW), *columns)
        result = dict(zip(keys, counter_random.permutation(bits, length).astype(np.int32), strict=True))
        self._permutations.update(result)
        self._num_cached_offsets += length * len(result)
        while self._num_cached_offsets > _CACHED_OFFSETS and len(self._permutations) > 1:
            _, oldest = self._permutations.popitem(last=False)
            self._num_cached_offsets -= len(oldest)
        return result
